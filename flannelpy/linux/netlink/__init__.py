"""The connection to the kernel: requests, listings and notifications of rtnetlink(7)."""
