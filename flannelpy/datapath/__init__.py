"""The data plane's decisions: backend settings, next hops, and the fate of each packet.  Pure."""
