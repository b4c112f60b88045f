"""What iptables and nftables rules do with packets, and which rules flannelpy adds.  Pure."""
