"""What is leased, to whom, for how long."""
