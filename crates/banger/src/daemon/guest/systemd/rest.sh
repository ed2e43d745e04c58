# Brings a guest with systemd to rest before it is saved, and says which units have not come up. What is to begin in each VM that
# goes on from it stands in the file `later`, for go_on.sh.
later=/run/banger/later
journald=/sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.procs
units() { systemctl list-units --plain --no-legend --full "$@" | cut -d ' ' -f 1; }

# What has failed, or is tried again and again, had neither an address nor an ssh host key: each VM has both. Its timers begin by
# its own clock, as if they had never run: one that jumps by a template's age has all those elapse that go by the calendar.
failed=$(units --state=failed; units --state=activating --type=service)
timers=$(units --state=active --type=timer)
[ -z "$failed$timers" ] || systemctl stop $failed $timers || exit
systemctl reset-failed || exit
find /var/lib/systemd/timers -type f -newer /run/systemd/private -delete 2>/dev/null
mkdir -p /run/banger && printf '%s ' $failed $timers >$later || exit

# Its journal, its id and its seed are nobody's. What is said from here on waits in journald's sockets, for a journald that knows
# whose it is.
if read -r pid <$journald; then
    journalctl --sync && kill -STOP "$pid" || exit
    read -r id </etc/machine-id && rm -rf "/var/log/journal/$id" "/run/log/journal/$id" || exit
fi
: >/etc/machine-id && rm -f /var/lib/systemd/random-seed || exit
printf '%s ' $failed
