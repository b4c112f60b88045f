"""The parts of ``make bench``: what carries packets, what is measured about it, what is told of that."""
