#!/bin/sh
# Boots a copy of this machine's system with packages of Debian added: an overlay of / whose upper layer is in memory.
# usage: boot.sh RUN NETNS INTERNET ARCHIVES PACKAGE...
#   RUN       a directory that becomes /run, with the project in source/; nothing outside of it is written
#   NETNS     the network of the system
#   INTERNET  the network in which packages are fetched, into ARCHIVES
# It runs in a mount namespace of its own, waits for a line on its standard input, and ends as systemd-nspawn.
set -eu

run=$1 netns=$2 internet=$3 archives=$4
shift 4
read -r _

# By number, since /run is another one soon.
exec 8<"$netns"
mkdir -p "$archives/partial"
mount --bind "$run" /run
mkdir /run/system
mount -t tmpfs -o mode=755 none /run/system
cd /run/system
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=/run/system/upper,workdir=/run/system/work overlay root

# What starts by itself on this machine is none of the system's business.
rm -rf root/etc/systemd/system root/usr/sbin/policy-rc.d root/etc/apt/apt.conf.d/docker-clean
mkdir -p root/etc/systemd/system
: >root/etc/fstab
tr -d - </proc/sys/kernel/random/uuid >root/etc/machine-id

in_root() {
	nsenter --net="$internet" chroot root env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		DEBIAN_FRONTEND=noninteractive "$@"
}
mount -t proc none root/proc
mount --rbind /dev root/dev
mkdir -p root/var/cache/apt/archives
mount --bind "$archives" root/var/cache/apt/archives
printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d
chmod 755 root/usr/sbin/policy-rc.d
in_root apt-get update -qq
in_root apt-get install -qq --no-install-recommends systemd-container "$@"
rm root/usr/sbin/policy-rc.d
umount root/var/cache/apt/archives

cp -R /run/source root/usr/src/flannelpy
while read -r command; do
	in_root CC=/bin/false sh -euc "cd /usr/src/flannelpy && $command" # interpreted kernels do, and take less time
done <root/usr/src/flannelpy/commands
umount -l root/dev root/proc

# There is no udev inside, whose rules open the TUN to all users; and Docker writes to the cgroups of version 1.
cat >root/etc/systemd/system/laboratory.service <<'END'
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -euc "chmod 666 /dev/net/tun; for group in /sys/fs/cgroup/*/; do mount -o remount,bind,rw $$group || :; done"
[Install]
WantedBy=sysinit.target
END
chroot root systemctl --quiet enable laboratory.service
# It would wait for a network of systemd-networkd's, which does not come.
chroot root systemctl --quiet mask systemd-networkd-wait-online.service

libraries=$(dirname root/usr/lib/*/systemd/libsystemd-shared-*.so | head -n 1)
# Docker and flannelpy write to /proc/sys/net.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network LD_LIBRARY_PATH="$libraries"
exec root/usr/bin/systemd-nspawn --quiet --directory=root --boot --register=no --keep-unit --machine=flannelpy \
	--network-namespace-path=/proc/self/fd/8 --resolv-conf=off --link-journal=no \
	--capability=CAP_BPF,CAP_NET_ADMIN,CAP_NET_RAW,CAP_MKNOD,CAP_SYS_ADMIN --system-call-filter='add_key keyctl bpf' \
	--tmpfs=/var/lib/docker --tmpfs=/var/lib/containerd --console=pipe systemd.unit=multi-user.target
