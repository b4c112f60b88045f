"""How packets travel between hosts."""
