"""How packets travel between hosts: the backends, and what they share."""
