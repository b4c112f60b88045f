"""python-etcd, without dnspython, which takes 25 ms and 2 MB.

python-etcd imports dnspython to look for endpoints in SRV records.  flannelpy's endpoints come from -etcd-endpoints.
"""

import sys
from types import ModuleType

_UNUSED = "dns.resolver"

sys.modules.setdefault(_UNUSED, placeholder := ModuleType(_UNUSED))
import etcd  # noqa: E402 - the placeholder comes first

if sys.modules[_UNUSED] is placeholder:
    del sys.modules[_UNUSED]

__all__ = ["etcd"]
