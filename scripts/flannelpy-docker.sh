#!/bin/sh
# Runs when flannelpy is ready: has Docker follow the subnet file, and leaves containers alone where nothing has changed.
#   Docker runs, its options are still right  ->  nothing
#   Docker runs with other options            ->  a restart: another subnet or MTU, or -ip-masq was switched
#   Docker has failed                         ->  a start: it fails while there is no subnet file
#   Docker is stopped, or waits for us        ->  nothing
# The options that Docker was started with are in the file that mk-docker-opts.sh has written before, in any of its forms,
# for the drop-in of docker.service or for a unit of an operator's own.  Where there is no such file, Docker's options
# are not ours to change.

subnet_file=${1:-/run/flannel/subnet.env}
docker_file=${2:-/run/docker_opts.env}

# All options that Docker was started with, each on a line.  An operator's own stand before --bip in a combined variable:
# mk-docker-opts.sh adds its options behind them.
known_options() {
	sed 's/.*[" ]--bip=/--bip=/' "$docker_file" | tr '" \t' '\n\n\n' | grep '^--'
}

# Whether an option of the subnet file differs from the one that Docker was started with.  An option that Docker was
# started without does not count: mk-docker-opts.sh -m leaves one out.
has_changed() {
	[ -f "$docker_file" ] || return 1
	known=$(known_options)
	case $known in
	*--bip=*) ;;
	*)
		echo "$docker_file has no --bip, so Docker's options are unknown: not restarting it"
		return 1
		;;
	esac
	options=$(env -i PATH="$PATH" mk-docker-opts.sh -i -f "$subnet_file" -d /dev/stdout | sed 's/.*="\(.*\)"/\1/')
	for option in $options; do
		printf '%s\n' "$known" | grep -q "^${option%%=*}=" || continue
		printf '%s\n' "$known" | grep -qxF -e "$option" || return 0
	done
	return 1
}

case $(systemctl is-active docker.service) in
active | reloading | activating) ;;
failed) systemctl is-enabled --quiet docker.service docker.socket || exit 0 ;;
*) exit 0 ;;
esac

if has_changed; then
	echo "Docker's options have changed: restarting it"
	verb=restart
else
	verb=start
fi
# A Docker that has failed often is not started again before a minute is over.
systemctl reset-failed docker.service
# Without --no-block, we would wait for Docker, and Docker waits for us.
systemctl $verb --no-block docker.service
