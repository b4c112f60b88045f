r"""A small data centre on one machine: a switch with etcd and hosts that run flannelpy, all in network namespaces.

          switch   br0 172.17.8.1/24, etcd on port 2379
         /   |   \
      eth1  eth1  eth1       172.17.8.101, .102, .103, …
    host1  host2  host3      each with its own /run, so each has its own /run/flannel/subnet.env and host ID
       |     |     |
    docker0  …     …         the address and MTU of the host's subnet.env
       |
      eth0                   container host1-c1, the subnet's .2

With ``etcd_members`` etcd is a cluster of machines etcd1, etcd2, … (172.17.8.11, .12, …) on the switch instead.

A lab is named by its prefix: its namespaces are ``<prefix>-switch``, ``<prefix>-host1``, ``<prefix>-host1-c1``, its
directory is ``/run/<prefix>``, and a host's /run is ``/run/<prefix>/host1/run`` seen from outside.  Nothing else of it
exists outside its namespaces: the prefix is enough to remove it, and two labs never conflict.
"""

from lab.daemon import Daemon
from lab.lab import CONFIG, ETCD_PREFIX, Lab, LabExistsError, lab_exists, remove_lab, wait_connected
from lab.machines import UNDERLAY, Container, EtcdMember, Host, Machine
from lab.namespaces import INTERRUPTIBLE, NAMESPACES, CommandError, Node, undisturbed, wait_for

__all__ = [
    "CONFIG",
    "ETCD_PREFIX",
    "INTERRUPTIBLE",
    "NAMESPACES",
    "UNDERLAY",
    "CommandError",
    "Container",
    "Daemon",
    "EtcdMember",
    "Host",
    "Lab",
    "LabExistsError",
    "Machine",
    "Node",
    "lab_exists",
    "remove_lab",
    "undisturbed",
    "wait_connected",
    "wait_for",
]
