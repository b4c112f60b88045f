"""The eBPF programs that carry packets as the engine does, and their maps.  Pure.

``checks.py`` is the table of what they leave to the loop; ``outgoing.py`` and ``incoming.py`` are the programs.
"""
