# Goes on with what rest.sh has left, in a VM that is itself. Where it is cut off, it is done again; once it is done, no more.
later=/run/banger/later
journald=/sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.procs
[ -e $later ] || exit 0

# The journald that stands still knows the ids of a template. systemd starts another at once, which finds what waits.
stat=
[ ! -e $journald ] || { read -r pid <$journald && read -r stat <"/proc/$pid/stat"; }
case $stat in *") T "*) kill -KILL "$pid" || exit ;; esac
units=$(cat $later) || exit
# One that is gone or masked by now keeps none of the others back; a systemd that does not answer keeps all of them.
set -- $units
[ $# = 0 ] || systemctl start --no-block -- "$@" || systemctl show --property=Version >/dev/null || exit
mv $later $later.begun
