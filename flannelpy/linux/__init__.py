"""Every system call of the project."""
