//! A failure as a person reads it: what, why, how to mend it; at most eight lines, control characters escaped.

use super::text;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
use wire::client::{Error, Refused};
use wire::{Code, Method};

/// Failed.
const FAILED: u8 = 1;
/// The command line itself was wrong.
const USAGE: u8 = 2;

/// A failure.
#[derive(Debug)]
pub(crate) struct Problem {
    code: String,
    message: String,
    why: Option<String>,
    fixes: Vec<String>,
    /// The process's exit status.
    pub(crate) exit: u8,
}

impl Problem {
    /// A failure with exit status 1.
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Problem {
        Problem { code: code.to_owned(), message: message.into(), why: None, fixes: Vec::new(), exit: FAILED }
    }

    /// A mistake of the command line, exit status 2.
    pub(crate) fn usage(message: impl Into<String>) -> Problem {
        Problem { exit: USAGE, ..Problem::new("usage", message) }
    }

    /// Adds the reason.
    pub(crate) fn why(mut self, why: impl fmt::Display) -> Problem {
        self.why = Some(why.to_string());
        self
    }

    /// Adds what to do; the last one counts little, so the best comes first.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Problem {
        self.fixes.push(fix.into());
        self
    }

    /// A call that failed.
    pub(crate) fn of_call(error: Error, socket: &Path, limit: Duration) -> Problem {
        match error {
            Error::Io(error) => of_connection(&error, socket, limit),
            Error::Reply(what) => {
                Problem::new("bad_reply", format!("what answers on {} is no root helper", show(socket)))
                    .why(what)
                    .fix("--socket names another one")
            }
            Error::Refused(refused) => of_refusal(refused),
        }
    }
}

fn of_connection(error: &io::Error, socket: &Path, limit: Duration) -> Problem {
    let at = show(socket);
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected => {
            Problem::new("helper_down", format!("banger's root helper doesn't answer on {at}"))
                .why(error)
                .fix("sudo bangerd-root &     where its unit is installed: sudo systemctl start bangerd-root")
        }
        io::ErrorKind::PermissionDenied => {
            Problem::new("not_the_owner", format!("{at} is another user's: the root helper serves its owner and root"))
                .why(error)
                .fix("run this as the owner whom `banger helper init` named, or with sudo")
        }
        io::ErrorKind::TimedOut => Problem::new(
            "helper_timeout",
            format!("the root helper on {at} has not answered for {} s", limit.as_secs_f64()),
        )
        .why("an operation that was begun goes on; asking for it again is safe")
        .fix("--timeout 10m waits longer"),
        io::ErrorKind::InvalidInput => Problem::usage(format!("{at} can't be a socket's path")).why(error),
        _ => Problem::new("helper_lost", format!("the connection to the root helper on {at} broke")).why(error),
    }
}

fn of_refusal(refused: Refused) -> Problem {
    let problem = Problem::new(refused.code.map_or("unknown", Code::as_str), refused.message.clone());
    let problem = match refused.code {
        Some(Code::Unauthorized) => problem.fix("run this as the owner whom `banger helper init` named, or with sudo"),
        Some(Code::UnknownMethod) => {
            let sent = refused.message.as_str();
            let problem =
                Problem::new("unknown_method", format!("the root helper has no method {}", wire::code::shown(sent)));
            match near(sent) {
                Some(near) => problem.fix(format!("{near} is close; docs/helper.md lists them all")),
                None => problem.fix("docs/helper.md lists the methods; their names begin with priv."),
            }
        }
        _ => problem,
    };
    match refused.op_id {
        Some(id) => problem.why(format!("{id} in the helper's log (journalctl -u bangerd-root)")),
        None => problem,
    }
}

/// The method whose name is nearest, where a slip of two letters or a forgotten `priv.` explains the difference.
fn near(sent: &str) -> Option<&'static str> {
    let name = if sent.starts_with("priv.") { sent.to_owned() } else { format!("priv.{sent}") };
    let all = Method::ALL.iter().map(|method| method.name());
    all.map(|known| (distance(&name, known), known)).min().filter(|&(far, _)| far <= 2).map(|(_, known)| known)
}

/// How many letters must be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(100).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(100).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error[{}]: {}", self.code, text::line(&self.message))?;
        if let Some(why) = &self.why {
            writeln!(f, "  why: {}", text::line(why))?;
        }
        for fix in self.fixes.iter().take(6) {
            writeln!(f, "  fix: {}", text::line(fix))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_helper_says_can_not_move_the_cursor() {
        let refused = Refused {
            code: Some(Code::OperationFailed),
            message: "a\u{1b}[2Jb\nerror[x]: y".into(),
            op_id: Some("op\r1".into()),
        };
        let text = of_refusal(refused).to_string();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(r"error[operation_failed]: a\u{1b}[2Jb\nerror[x]: y"));
        assert_eq!(lines.next(), Some(r"  why: op\r1 in the helper's log (journalctl -u bangerd-root)"));
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn a_slip_gets_the_near_name() {
        assert_eq!(near("priv.ensure_brige"), Some("priv.ensure_bridge"));
        assert_eq!(near("delete_tap"), Some("priv.delete_tap"));
        assert_eq!(near("priv.nothing_like_it"), None);
    }
}
