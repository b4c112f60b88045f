"""What one invocation of flannelpy does: run the daemon, or clean up after one."""
