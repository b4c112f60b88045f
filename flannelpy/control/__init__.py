"""The control socket: by it, commands and the HTTP process ask a running daemon."""
