"""The commands, one module each: run the daemon, or clean up after an earlier run."""
