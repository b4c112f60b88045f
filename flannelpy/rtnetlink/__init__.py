"""The kernel's messages about links, addresses, routes, neighbours and rules.  Pure."""
