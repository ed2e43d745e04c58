//! What systemd says to a service that it starts, and what it wants to hear: sd_listen_fds(3), sd_notify(3).

use std::time::Duration;

/// What the environment said, read before it is cleared.
#[derive(Debug, Default)]
pub(crate) struct Started {
    /// How many descriptors were passed to this process.
    pub(crate) listen_fds: u32,
    /// How often the watchdog wants to hear of us, at the least.
    pub(crate) watchdog: Option<Duration>,
    notify: Option<String>,
}

impl Started {
    /// Reads the environment. What is meant for another process is ignored, as the protocol wants it.
    pub(crate) fn from_environment() -> Started {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let own = u64::from(std::process::id());
        let passed = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(own)).unwrap_or(0);
        let watchdog = number("WATCHDOG_USEC").filter(|&micros| micros > 0);
        let watchdog = watchdog.filter(|_| number("WATCHDOG_PID").is_none_or(|pid| pid == own));
        Started {
            // More than a process can have open is as wrong as 2 are; whoever takes them says so.
            listen_fds: u32::try_from(passed).unwrap_or(u32::MAX).min(1024),
            watchdog: watchdog.map(Duration::from_micros),
            notify: std::env::var("NOTIFY_SOCKET").ok().filter(|path| !path.is_empty()),
        }
    }

    /// Tells systemd, where it listens: `READY=1`, `STOPPING=1`, `WATCHDOG=1`.
    pub(crate) fn tell(&self, state: &str) -> std::io::Result<()> {
        self.notify.as_ref().map_or(Ok(()), |socket| sys::notify::tell(socket, state))
    }
}
