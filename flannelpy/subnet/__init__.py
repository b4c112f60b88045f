"""Decisions about config and leases: which are valid, which wins, what happens to our own.  Pure."""
