"""The backends by their names in Backend.Type, and what each of them is built from.

Counterpart: backend/manager.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.base import Backend
from flannelpy.errors import ConfigError
from flannelpy.foreign import shown
from flannelpy.options import Options
from flannelpy.subnet.config import NetworkConfig

if TYPE_CHECKING:
    from flannelpy.backend.udp.kernel_mode import KernelMode


def create(
    config: NetworkConfig,
    external: ExternalInterface,
    options: Options,
    alias: str,
    kernel_mode: KernelMode | None = None,
) -> Backend:
    """Return the backend that the config asks for; it marks its device with ``alias``.  Raises ConfigError, HostError.

    ``kernel_mode``: how the kernel may carry packets of the udp backend; None if it may not.

    A backend is imported when a config asks for it: the packet code and the netlink modules take time to import.
    """
    match config.backend.type:
        case "alloc":
            from flannelpy.backend.alloc import AllocBackend

            return AllocBackend(external)
        case "host-gw":
            from flannelpy.backend.host_gw import HostGwBackend

            return HostGwBackend(config, external, options.public_ip)
        case "udp":
            from flannelpy.backend.udp.backend import UdpBackend

            return UdpBackend(config, external, alias, options.offload, options.source_check, kernel_mode)
        case "vxlan":
            from flannelpy.backend.vxlan.backend import VxlanBackend

            return VxlanBackend(config, external, alias)
        case unknown:
            known = "alloc, host-gw, udp, vxlan"
            raise ConfigError(f"unknown backend type: {shown(repr(unknown))}; Backend.Type may be {known}")
