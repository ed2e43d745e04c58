//! A failure as a person reads it: what, why, how to mend it; at most eight lines, control characters escaped.

use super::documents::Failure;
use super::text;
use crate::api::Fault;
use crate::daemon::error::exit;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
use wire::client::{Error, Refused};
use wire::{Code, Method};

/// A failure.
#[derive(Debug)]
pub(crate) struct Problem(Fault);

impl Problem {
    /// A failure with exit status 1.
    pub(crate) fn new(code: &str, message: impl Into<Box<str>>) -> Problem {
        Problem(Fault::new(code, exit::FAILED, message))
    }

    /// A mistake of the command line, exit status 2.
    pub(crate) fn usage(message: impl Into<Box<str>>) -> Problem {
        Problem(Fault::new("usage", exit::USAGE, message))
    }

    /// What the parser of the command line says of `command`: its first paragraph, the near name, and its other tips. `near`: of
    /// a command or a flag; the parser's own likes what is far, or hidden.
    pub(crate) fn of_usage(error: &clap::Error, command: &str, near: Option<String>) -> Problem {
        let text = error.to_string();
        let what = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        let problem = match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
                Problem::usage("a command's name is missing")
            }
            _ => Problem::usage(what.trim_start_matches("error: ")),
        };
        let near = match (error.kind(), error.get(ContextKind::SuggestedValue)) {
            (ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument, _) => near,
            (_, Some(ContextValue::String(value))) => Some(value.clone()),
            _ => None,
        };
        let near = near.into_iter().map(|near| format!("{near} is close"));
        let tips = match error.get(ContextKind::Suggested) {
            Some(ContextValue::StyledStrs(tips)) => tips.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let problem = near.chain(tips).fold(problem, Problem::fix);
        problem.fix(format!("{} --help says what it takes", format!("banger {command}").trim_end()))
    }

    /// There is no such thing, exit status 3.
    pub(crate) fn missing(code: &str, message: impl Into<Box<str>>) -> Problem {
        Problem(Fault::new(code, exit::MISSING, message))
    }

    /// Something that this machine lacks, exit status 6.
    pub(crate) fn machine(code: &str, message: impl Into<Box<str>>) -> Problem {
        Problem(Fault::new(code, exit::MACHINE, message))
    }

    /// Adds the reason.
    pub(crate) fn why(self, why: impl fmt::Display) -> Problem {
        Problem(self.0.why(why))
    }

    /// Adds what to do; the last one counts little, so the best comes first.
    pub(crate) fn fix(self, fix: impl Into<String>) -> Problem {
        Problem(self.0.fix(fix))
    }

    /// What the daemon says, or what was said on the way to it.
    pub(crate) fn of_fault(fault: Fault) -> Problem {
        Problem(fault)
    }

    /// Whether it has that code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.0.code == code
    }

    /// The process's exit status.
    pub(crate) fn exit(&self) -> u8 {
        self.0.exit
    }

    /// The exit status of a command that runs another in a guest, where this came in between.
    pub(crate) fn exit_of_run(&self) -> u8 {
        match (self.0.code.as_str(), self.0.exit) {
            ("interrupted", exit::INTERRUPTED) => exit::INTERRUPTED,
            ("not_found_in_guest" | "not_executable", exit) => exit,
            _ => 125,
        }
    }

    /// The object of `--json`, with the exit status that the process ends with.
    pub(crate) fn json(&self, exit: u8) -> String {
        let failure = Failure { error: Fault { exit, ..self.0.clone() } };
        text::json(&serde_json::to_string(&failure).unwrap_or_default())
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
    crate::near::nearest(&name, Method::ALL.iter().map(|method| method.name()))
}

/// So long may a failure be: what, why, and what to do.
const LINES: usize = 8;
/// So many of them what to do, so that there is a line for each of the others.
const FIXES: usize = LINES - 2;

fn show(path: &Path) -> String {
    path.display().to_string()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { code, message, why, fix, op_id, exit, .. } = &self.0;
        writeln!(f, "error[{code}]: {}", text::line(message))?;
        // Of what the caller got wrong the log says no more than this.
        let says_all = op_id.is_empty() || [exit::USAGE, exit::MISSING, exit::STATE].contains(exit);
        let log = if says_all { String::new() } else { format!("({} in bangerd's log)", text::line(op_id)) };
        let fixes = fix.len().min(FIXES);
        match (why, log.as_str()) {
            (None, "") => {}
            (None, log) => writeln!(f, "  why: {log}")?,
            (Some(why), log) => {
                let mut lines = why.split('\n');
                let first = text::line(lines.next().unwrap_or_default());
                writeln!(f, "{}", format!("  why: {first}     {log}").trim_end())?;
                // Another program's words: none of them begins a line of ours.
                for line in lines.take(LINES - 2 - fixes) {
                    writeln!(f, "    | {}", text::line(line))?;
                }
            }
        }
        for fix in fix.iter().take(fixes) {
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
    fn a_failure_is_eight_lines_at_most_and_says_what_to_do() {
        for (why, fixes, lines) in [(20, 0, 8), (20, 1, 8), (20, 3, 8), (20, 9, 8), (1, 9, 8), (0, 2, 3), (2, 2, 5)] {
            let mut problem = Problem::new("x", "what");
            if why > 0 {
                problem = problem.why(vec!["word"; why].join("\n"));
            }
            let problem = (0..fixes).fold(problem, |problem, n| problem.fix(format!("do {n}")));
            let text = problem.to_string();
            let shown = text.lines().filter(|line| line.starts_with("  fix: ")).count();
            assert_eq!((text.lines().count(), shown), (lines, fixes.min(6)), "{text}");
            assert_eq!(text.contains("why: word"), why > 0);
        }
    }

    #[test]
    fn a_slip_gets_the_near_name() {
        assert_eq!(near("priv.ensure_brige"), Some("priv.ensure_bridge"));
        assert_eq!(near("delete_tap"), Some("priv.delete_tap"));
        assert_eq!(near("priv.nothing_like_it"), None);
    }
}
