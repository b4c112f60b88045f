"""Packet code, pure: bytes in, bytes out; no I/O, no clock, no logging.  Installation compiles it if it can."""


def build() -> str:
    """Return the form in which this package's code runs: ``compiled`` or ``interpreted``."""
    from flannelpy.packet import checksum

    return "interpreted" if checksum.__file__.endswith((".py", ".pyc")) else "compiled"
