//! The hand-over to the distribution's own init: it becomes the first process, and the agent goes on beside it.

use std::convert::Infallible;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::protocol::Down;

use super::boot;

const INIT: &str = "/sbin/init";
/// The agent's own name beside an init: systemd's last kill spares a process of root's whose name begins so
/// (systemd-shutdown, "root storage daemons"), and so the agent sees the machine's end.
const NAME: &str = "@banger-agent";
/// The word that tells the agent what it is then.
pub(crate) const WORD: &str = "handed-over";
/// systemd answers on this socket, before it has started anything.
const SYSTEMD_ANSWERS: &str = "/run/systemd/private";
/// So long it may take to answer; then the agent does without, before its host gives the guest up.
const PATIENCE: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(20);

/// Starts the agent once more and becomes the init.
///
/// # Errors
/// Why that can't be. It returns for no other reason.
pub(super) fn hand_over() -> Result<Infallible, String> {
    // Looked at first: the agent is not to be there twice.
    rustix::fs::access(INIT, rustix::fs::Access::EXEC_OK)
        .map_err(|error| format!("no {INIT} in this image, {error}: image build --include systemd-sysv brings one"))?;
    // The agent's own file is gone with the initrd; the kernel still has it.
    let agent = Command::new("/proc/self/exe").arg0(NAME).arg(WORD).spawn();
    agent.map_err(|error| format!("the agent beside {INIT}: {error}"))?;
    boot::want_quick_reset();
    Err(format!("{INIT}: {}", Command::new(INIT).exec()))
}

/// Waits until the init can be spoken to, where it is one that can.
pub(super) fn await_init() {
    let is_systemd = std::fs::canonicalize(INIT).is_ok_and(|init| init.ends_with("systemd"));
    let begun = Instant::now();
    while is_systemd && !answers() && begun.elapsed() < PATIENCE {
        std::thread::sleep(LOOK);
    }
}

fn answers() -> bool {
    std::fs::metadata(SYSTEMD_ANSWERS).is_ok_and(|there| there.file_type().is_socket())
}

/// Whether the init is systemd, by its own sign (sd_booted(3)).
pub(super) fn is_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Asks the first process to end the machine. systemd has signals for that, SIGRTMIN+4 and +5 (systemd(1)), SIGRTMIN being
/// glibc's 34; any other is told of Ctrl-Alt-Del, as by the kernel.
///
/// # Errors
/// What the kernel says.
pub(super) fn ask_init(how: Down) -> std::io::Result<()> {
    let signal = match (is_systemd(), how) {
        (true, Down::Poweroff) => 34 + 4,
        (true, Down::Reset) => 34 + 5,
        (false, _) => rustix::process::Signal::INT.as_raw(),
    };
    Ok(sys::pidfd::open(1)?.send_signal(signal)?)
}
