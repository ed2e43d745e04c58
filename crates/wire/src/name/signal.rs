//! Signals that a VMM may be sent.

use super::Invalid;
use crate::code::shown;

/// A signal, by name. There are no numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Ask it to end.
    Term,
    /// End it.
    Kill,
    /// As Ctrl-C.
    Int,
    /// As a terminal that went away.
    Hup,
    /// As Ctrl-\.
    Quit,
    /// The program's own.
    Usr1,
    /// The program's own.
    Usr2,
    /// End it as a crash.
    Abrt,
}

impl Signal {
    /// Every signal with its name.
    pub const ALL: [(Signal, &'static str); 8] = [
        (Signal::Term, "TERM"),
        (Signal::Kill, "KILL"),
        (Signal::Int, "INT"),
        (Signal::Hup, "HUP"),
        (Signal::Quit, "QUIT"),
        (Signal::Usr1, "USR1"),
        (Signal::Usr2, "USR2"),
        (Signal::Abrt, "ABRT"),
    ];

    /// Checks a signal's name: any case, with or without `SIG`, blanks around it trimmed; empty is `TERM`.
    pub fn new(text: &str) -> Result<Signal, Invalid> {
        let name = text.trim().to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        if name.is_empty() && !text.trim().eq_ignore_ascii_case("sig") {
            return Ok(Signal::Term);
        }
        Signal::ALL.into_iter().find(|(_, known)| *known == name).map(|(signal, _)| signal).ok_or_else(|| {
            Invalid::new(format!("signal {} is none of TERM, KILL, INT, HUP, QUIT, USR1, USR2, ABRT", shown(text)))
        })
    }

    /// Its name, without `SIG`.
    pub fn name(self) -> &'static str {
        Signal::ALL.iter().find(|(signal, _)| *signal == self).map_or("TERM", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings() {
        for (text, want) in
            [("", "TERM"), (" ", "TERM"), ("SIGTERM", "TERM"), ("sigint", "INT"), (" usr1 ", "USR1"), ("kill", "KILL")]
        {
            assert_eq!(Signal::new(text).unwrap().name(), want, "{text}");
        }
        for bad in ["9", "0", "CONT", "STOP", "SIGSIGTERM", "SIG", "RTMIN+1", "TERM KILL", "-9"] {
            assert!(Signal::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn only_the_eight(text in "\\PC{0,10}") {
            if let Ok(signal) = Signal::new(&text) {
                let upper = text.trim().to_ascii_uppercase();
                prop_assert!(upper.is_empty() || upper.ends_with(signal.name()));
            }
        }
    }
}
