"""pyroute2's AsyncIPRoute, without the rest of pyroute2, which takes 30 ms and 6 MB.

pyroute2's package imports all of its libraries, of which flannelpy uses this one.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_PACKAGE = "pyroute2"

# With a module in its place, Python finds the parts of the package without executing it.
spec = PathFinder.find_spec(_PACKAGE)
assert spec, "pyroute2 is a dependency"
sys.modules.setdefault(_PACKAGE, placeholder := module_from_spec(spec))
from pyroute2.iproute import AsyncIPRoute  # noqa: E402 - the placeholder comes first
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402

if sys.modules[_PACKAGE] is placeholder:
    del sys.modules[_PACKAGE]

__all__ = ["AsyncIPRoute", "NetlinkError"]
