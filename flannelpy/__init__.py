"""A faithful flanneld: a subnet for every host, containers connected across hosts."""

__version__ = "0.2.0"
