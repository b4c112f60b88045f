#!/bin/sh
# Turns the subnet file into options for the Docker daemon.
# Counterpart: dist/mk-docker-opts.sh of flannel v0.5.5: same options, same output, byte for byte.
# For any POSIX shell; the original needed bash.

usage() {
	cat >&2 <<-END
		Usage: $0 [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

		Turns the subnet file into options for the Docker daemon. Neither -i nor -c means both.

		  -f FILE   read this subnet file (default: /run/flannel/subnet.env)
		  -d FILE   write this file (default: /run/docker_opts.env)
		  -i        one variable for each option: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
		  -c        one variable for all options
		  -k NAME   the name of that variable (default: DOCKER_OPTS)
		  -m        no --ip-masq, for a Docker that does not know it
	END
	exit 1
}

fail() {
	echo "$0: $1" >&2
	exit 1
}

subnet_file=/run/flannel/subnet.env
docker_file=/run/docker_opts.env
single=false
combined=false
masquerade=true
key=DOCKER_OPTS

while getopts f:d:icmk:h option; do
	case $option in
	f) subnet_file=$OPTARG ;;
	d) docker_file=$OPTARG ;;
	i) single=true ;;
	c) combined=true ;;
	m) masquerade=false ;;
	k) key=$OPTARG ;;
	*) usage ;;
	esac
done

case $key in
'' | [0-9]* | *[!A-Za-z0-9_]*) fail "-k needs the name of a variable, not '$key'" ;;
esac

if [ $single = false ] && [ $combined = false ]; then
	single=true
	combined=true
fi

# The file belongs to the daemon's user, and here root may be reading it: nothing in it is to be a command, and nothing
# of it is to be printed, since a symbolic link may lead to a file that only root may read.
[ -f "$subnet_file" ] || fail "$subnet_file is not a subnet file: does flannelpy run?"
# Shells drop a null byte: as another byte it is found.
lines=$(LC_ALL=C tr '\000' '\001' <"$subnet_file") || fail "can't read $subnet_file"
plain='^((FLANNEL|DOCKER)_[A-Z0-9_]*=[A-Za-z0-9_./:=-]*|#.*)?$'
strange=$(printf '%s\n' "$lines" | LC_ALL=C sed -nE "\\,$plain,!{=;q;}")
[ -z "$strange" ] || fail "$subnet_file: line $strange is not of the form FLANNEL_MTU=1472"
unset FLANNEL_SUBNET
eval "$lines"
[ -n "$FLANNEL_SUBNET" ] || fail "$subnet_file has no FLANNEL_SUBNET: does flannelpy run?"

DOCKER_OPT_BIP=--bip=$FLANNEL_SUBNET
if [ -n "$FLANNEL_MTU" ]; then
	DOCKER_OPT_MTU=--mtu=$FLANNEL_MTU
fi
# One of the two masquerades: Docker when flannelpy does not.
if [ $masquerade = true ]; then
	case $FLANNEL_IPMASQ in
	'') ;;
	true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
	false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*) fail "FLANNEL_IPMASQ must be true or false" ;;
	esac
fi

# Options of the caller's own, DOCKER_OPT_DNS for one, go along; the order is that of the names.
# A line inside another variable's value can look like one: below, only what is set counts.
option_names() {
	set | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p' | LC_ALL=C sort -u
}

# What the combined variable holds already stays in front.
eval "all=\"\${$key} \""
{
	for name in $(option_names); do
		eval "known=\${$name+yes} value=\${$name}"
		[ "$known" ] || continue
		[ $single = false ] || printf '%s="%s"\n' "$name" "$value"
		all="$all$value "
	done
	[ $combined = false ] || printf '%s="%s"\n' "$key" "$all"
} >"$docker_file" || fail "can't write $docker_file"
