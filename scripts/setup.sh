#!/bin/sh
# Installs the programs that demo and tests need, where they are missing; says nothing when all is there.
set -eu

# An ordinary user of Debian has no sbin in PATH, where ip and iptables live.
PATH=$PATH:/usr/sbin:/sbin
PYTHON=${PYTHON:-python3}

missing=
wanted=

# need COMMAND PACKAGE
need() {
    command -v "$1" >/dev/null || missing="$missing $2"
}

need make make
need ip iproute2
need iptables iptables
need etcd etcd-server
need ping iputils-ping
need traceroute traceroute
need iperf3 iperf3
need tcpdump tcpdump
need socat socat
need ethtool ethtool
need nft nftables
need openssl openssl
need "$PYTHON" python3

# CNI plugins have a directory of their own.
[ -x /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins"

"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"

# A compiler is optional: without one the packet code runs as plain Python, slower.
command -v cc >/dev/null || wanted="$wanted gcc libc6-dev"
has_headers='import sys, sysconfig, os.path as path
sys.exit(sys.base_prefix == "/usr" and not path.exists(path.join(sysconfig.get_path("include"), "Python.h")))'
"$PYTHON" -c "$has_headers" 2>/dev/null || wanted="$wanted python3-dev"

if command -v apt-get >/dev/null; then
    packages=$missing$wanted
elif [ -n "$missing" ]; then
    echo "Missing here, by their Debian names:$missing$wanted" >&2
    echo "Please install them with this system's package manager, and try again." >&2
    exit 1
else
    packages=
fi

if [ -n "$packages" ]; then
    echo "Installing$packages"
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        echo "That needs root: asking sudo."
        sudo=sudo
    fi
    $sudo apt-get update -qq
    # shellcheck disable=SC2086  # the list is meant to be split
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $packages >/dev/null
    # Debian starts an etcd that it installs; everything here starts its own.
    case $packages in
        *etcd-server*) [ ! -d /run/systemd/system ] || $sudo systemctl disable --quiet --now etcd ;;
    esac
fi

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "flannelpy needs Python 3.11 or later, and $PYTHON is older: set PYTHON, as in: make PYTHON=python3.12" >&2
    exit 1
fi
