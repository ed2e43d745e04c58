# Brings a guest with systemd to rest before it is saved, and says which units have not come up. What is to begin in each VM that
# goes on from it stands in the file `later`, for go_on.sh.
later=/run/banger/later
journald=/sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.procs
# As old as this boot.
boot=/run/systemd/private
[ -e $boot ] || exit
units() {
    said=$(systemctl list-units --plain --no-legend --full "$@") || return
    printf '%s\n' "$said" | cut -d ' ' -f 1
}

# What has failed, or is tried again and again, had neither an address nor an ssh host key: each VM has both. What needs one of
# these was not even tried, as only the journal tells. Its timers begin by its own clock, as if they had never run: one that jumps
# by a template's age has all those elapse that go by the calendar. An ssh server that came up has keys of a template's.
# By one question: who is tried for the last time between two is in neither answer.
said=$(systemctl list-units --plain --no-legend --full --state=failed,activating) || exit
failed=$(printf '%s\n' "$said" | while read -r unit _ state _; do
    case $state:$unit in failed:* | activating:*.service) printf '%s\n' "$unit" ;; esac
done)
timers=$(units --state=active --type=timer) || exit
servers=$(units --state=active ssh.service sshd.service) || exit
without=
if [ -e $journald ]; then
    # The one form of all versions that names a field.
    journalctl --sync && told=$(journalctl -b -q -o export _PID=1 JOB_RESULT=dependency) || exit
    without=$(printf '%s\n' "$told" | sed -n 's/^UNIT=//p') || exit
fi
[ -z "$failed$timers$servers" ] || systemctl stop -- $failed $timers $servers || exit
systemctl reset-failed || exit
find /var/lib/systemd/timers -type f -newer $boot -delete 2>/dev/null
mkdir -p /run/banger && : >$later || exit
# What the image has is older than the boot, or younger than now, where the clock was behind.
for key in /etc/ssh/ssh_host_*; do
    ! [ "$key" -nt $boot ] || [ "$key" -nt $later ] || rm -f -- "$key" || exit
done
printf '%s ' $failed $without $servers $timers >$later || exit

# Its journal, its id and its seed are nobody's. What is said from here on waits in journald's sockets, for a journald that knows
# whose it is.
if [ -e $journald ]; then
    read -r pid <$journald && journalctl --sync && kill -STOP "$pid" || exit
    read -r id </etc/machine-id || [ -n "$id" ] || exit
    rm -rf "/var/log/journal/${id:?}" "/run/log/journal/${id:?}" || exit
fi
# A VM that is killed has what its disk says.
: >/etc/machine-id && rm -f /var/lib/systemd/random-seed && sync || exit
printf '%s ' $failed $without
