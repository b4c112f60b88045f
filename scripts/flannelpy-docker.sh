#!/bin/sh
# Runs when flannelpy is ready: has Docker follow the subnet file, and leaves containers alone where nothing has changed.
#   Docker runs, its options are still right  ->  nothing
#   Docker runs with other options            ->  a restart: another subnet or MTU, or -ip-masq was switched
#   Docker has failed                         ->  a start: it fails while there is no subnet file
#   Docker is stopped, or waits for us        ->  nothing
# The options that Docker was started with are in the file that the drop-in for docker.service has written.  Where there
# is no such file, Docker does not use the drop-in, and its options are not ours to change.

subnet_file=${1:-/run/flannel/subnet.env}
docker_file=${2:-/run/docker_opts.env}

# Whether an option is not the one that Docker was started with.  Options of an operator's own, which the file may hold
# too, don't count.
has_changed() {
	[ -f "$docker_file" ] || return 1
	options=$(env -i PATH="$PATH" mk-docker-opts.sh -i -f "$subnet_file" -d /dev/stdout) || return 1
	printf '%s\n' "$options" | grep -qvxFf "$docker_file"
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
