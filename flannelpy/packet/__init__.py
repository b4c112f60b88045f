"""Packets, pure: bytes in, bytes out; no I/O, no clock, no logging.  Plain Python that the install may compile."""


def build() -> str:
    """Whether the code of this package runs ``compiled`` or ``interpreted``."""
    from flannelpy.packet import checksum

    return "interpreted" if checksum.__file__.endswith((".py", ".pyc")) else "compiled"
