"""The program at both ends of the GRO pair: has the kernel receive what was merged there from the TUN.  Pure."""

from __future__ import annotations

from flannelpy.bpf.assembler import Assembler, Program
from flannelpy.bpf.instructions import Helper
from flannelpy.datapath.fast_path.parts import BPF_F_INGRESS, R1, R2


def program(tun: int) -> Program:
    """Return the program; ``tun``: the index of the TUN."""
    code = Assembler()
    code.set(R1, tun)
    code.set(R2, BPF_F_INGRESS)
    code.call(Helper.REDIRECT)
    code.leave()
    return code.program()
