"""Which addresses a host can have, which ours has, and which interface flannelpy chooses.  Pure."""
