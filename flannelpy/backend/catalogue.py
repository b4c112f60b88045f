"""Which backends there are, by the names that Backend.Type may have.

Counterpart: backend/manager.go.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.base import Backend, BackendModule
from flannelpy.errors import ConfigError
from flannelpy.foreign import shown
from flannelpy.options import Options
from flannelpy.subnet.config import NetworkConfig

# A module is imported when a config asks for its backend: pyroute2 and the packet code take time to import.
_MODULES = {
    "alloc": "flannelpy.backend.alloc",
    "host-gw": "flannelpy.backend.host_gw",
    "udp": "flannelpy.backend.udp.backend",
    "vxlan": "flannelpy.backend.vxlan.backend",
}


def create(config: NetworkConfig, external: ExternalInterface, options: Options) -> Backend:
    """Return the backend that the config asks for.  Raises ConfigError, HostError."""
    backend_type = config.backend.type
    if backend_type not in _MODULES:
        known = ", ".join(sorted(_MODULES))
        raise ConfigError(f"unknown backend type: {shown(repr(backend_type))}; Backend.Type may be {known}")
    return _module(backend_type).create(config, external, options)


def _module(backend_type: str) -> BackendModule:
    return cast(BackendModule, import_module(_MODULES[backend_type]))
