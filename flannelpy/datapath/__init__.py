"""The data plane's decisions: backend settings, next hops, and what becomes of each packet.  Pure."""
