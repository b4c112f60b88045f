"""HTTP: health, metrics and status, served by a process of its own that has no capabilities.

``listeners`` and ``process`` run in the daemon, which opens the ports and starts the process; the other modules run in
the process, in which alone bytes of strangers are parsed.
"""
