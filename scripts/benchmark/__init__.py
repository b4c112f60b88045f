"""``make bench``: the contenders, what is measured about them, and the report."""
