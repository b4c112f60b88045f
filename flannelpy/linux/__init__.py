"""Everything that asks the kernel or runs commands; it decides nothing."""
