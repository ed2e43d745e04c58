//! A command on a connection to an agent: what it is, its terminal, and the signals that reach it.

pub(super) use super::signals::Signals;
use super::terminal;
use crate::api::Attached;
use crate::cli::problem::Problem;
use crate::duration;
use agent::host::{Driver, Ended, Exec, Failure, Limits, Note, control};
use agent::protocol::TtySize;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a command in a guest is run.
#[derive(Args)]
pub(crate) struct Program {
    /// Pass standard input on, from a terminal too.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal, even where there is none here.
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Give it none.
    #[arg(short = 'T', long, overrides_with = "tty")]
    no_tty: bool,
    /// Give it no input: /dev/null.
    #[arg(short = 'n', long = "no-stdin", conflicts_with = "interactive")]
    no_stdin: bool,
    /// Set a variable; without =VALUE it is passed on from here.
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// Set the variables of a file: KEY=VALUE or KEY a line, # before a comment. -e goes before it.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// The directory in the guest [default: the user's home].
    #[arg(short, long, value_name = "DIR", default_value = "", hide_default_value = true)]
    pub(super) workdir: String,
    /// The user in the guest.
    #[arg(short, long, value_name = "USER", default_value = "root")]
    pub(super) user: String,
    /// End the command after this time: status 124.
    #[arg(long, value_name = "D", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Write to FILE, as JSON, whose exit status it was, and the VM's name.
    #[arg(long, value_name = "FILE")]
    pub(super) result: Option<PathBuf>,
}

/// What a terminal's programs look at, beside their size; passed on with a terminal and without being asked.
const TERMINALS: [&str; 3] = ["TERM", "COLORTERM", "LANG"];

/// A command as the agent is asked for it.
pub(super) struct Command {
    program: agent::host::Program,
    timeout: Option<Duration>,
    /// A terminal was asked for, not only found here.
    insists: bool,
}

impl Command {
    pub(super) fn new(given: &Program, command: &[OsString]) -> Result<Command, Problem> {
        let terminals = stdin().is_terminal() && stdout().is_terminal() && stderr().is_terminal();
        let wants_tty = given.tty || (terminals && !given.no_tty);
        let stdin = !given.no_stdin && (given.interactive || wants_tty || !stdin().is_terminal());
        let mut env = Vec::new();
        if wants_tty {
            let known = |key: &OsStr| TERMINALS.iter().any(|name| key == *name) || key.as_bytes().starts_with(b"LC_");
            env.extend(std::env::vars_os().filter(|(key, _)| known(key)).map(|(key, value)| pair(&key, &value)));
        }
        for file in &given.env_file {
            env.extend(of_file(file)?);
        }
        for variable in &given.env {
            env.extend(self::variable(variable)?);
        }
        let program = agent::host::Program {
            args: command.to_vec(),
            env,
            user: given.user.clone(),
            cwd: given.workdir.clone(),
            tty: wants_tty.then(terminal::size),
            stdin,
            hold: false,
            linger_s: 0,
        };
        Ok(Command { program, timeout: given.timeout, insists: given.tty })
    }

    /// Has it run in that directory, where none was named. It is root's, so another user's commands don't.
    pub(super) fn at_home_in(&mut self, directory: &str) {
        if self.program.cwd.is_empty() && self.program.user == "root" {
            directory.clone_into(&mut self.program.cwd);
        }
    }

    /// The same command without the terminal that nobody insisted on, for an agent that has none.
    pub(super) fn without_tty(&self) -> Option<Command> {
        let stdin = self.program.stdin && !stdin().is_terminal();
        let plain = agent::host::Program { tty: None, stdin, ..self.program.clone() };
        (self.program.tty.is_some() && !self.insists).then_some(Command {
            program: plain,
            timeout: self.timeout,
            insists: false,
        })
    }

    /// Runs it on a connection to the agent; `first_byte` is called when its first output comes.
    pub(super) fn run(
        &self,
        socket: &UnixStream,
        attached: &Attached,
        signals: &Signals,
        mut first_byte: impl FnMut(),
    ) -> Result<Ended, Failure> {
        let (control, orders) = control().map_err(Failure::Io)?;
        signals.send_by(control);
        let limits = if attached.accel == "kvm" { Limits::HARDWARE } else { Limits::EMULATED };
        let exec = Exec::new(&self.program, limits, Instant::now())?;
        let (stdin, stdout, stderr) = (stdin(), stdout(), stderr());
        let raw = self.program.tty.and_then(|_: TtySize| terminal::raw());
        let driver = Driver {
            socket,
            stdin: self.program.stdin.then(|| stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            orders: &orders,
            timeout: self.timeout,
        };
        let ended = driver.run(exec, |note| {
            if matches!(note, Note::FirstByte) {
                first_byte();
            }
        });
        drop(raw);
        if ended.as_ref().is_ok_and(|ended| ended.exit.is_out_of_memory()) {
            crate::cli::output::ours("killed: the guest was out of memory\n");
        }
        ended
    }
}

fn pair(key: &OsStr, value: &OsStr) -> OsString {
    let mut out = key.to_owned();
    out.push("=");
    out.push(value);
    out
}

/// `KEY=VALUE` as it is; `KEY` with the value that it has here, or nothing where it has none.
fn variable(given: &OsString) -> Result<Option<OsString>, Problem> {
    let bytes = given.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(0) => Err(Problem::usage("a variable has a name: -e KEY=VALUE")),
        Some(_) => Ok(Some(given.clone())),
        None if bytes.is_empty() => Err(Problem::usage("a variable has a name: -e KEY=VALUE")),
        None => Ok(std::env::var_os(given).map(|value| pair(given, &value))),
    }
}

/// The variables of a file, a line each as [`variable`] has them; nothing in a line is quoted.
fn of_file(path: &Path) -> Result<Vec<OsString>, Problem> {
    let shown = path.display();
    let text = std::fs::read(path)
        .map_err(|error| Problem::usage(format!("the variables of {shown} can't be read")).why(error))?;
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let meant = lines.filter(|(_, line)| !line.trim_ascii().is_empty() && !line.starts_with(b"#"));
    let each = meant.map(|(number, line)| {
        let line = OsStr::from_bytes(line.strip_suffix(b"\r").unwrap_or(line)).to_owned();
        variable(&line).map_err(|problem| problem.why(format!("{shown}, line {}", number + 1)))
    });
    Ok(each.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# x\nA=b c \r\n\nBANGER_NOT_SET_HERE\n  \nPATH\nQ=\"q\"").unwrap();
        let read = of_file(file.path()).unwrap();
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!((read[0].to_str(), read[2].to_str()), (Some("A=b c "), Some("Q=\"q\"")));
        std::fs::write(file.path(), "A=b\n=c\n").unwrap();
        assert!(of_file(file.path()).unwrap_err().to_string().contains("line 2"));
        assert!(of_file(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn variables() {
        let text = |given: &str| variable(&given.into()).ok().flatten().map(|text| text.into_string().unwrap());
        assert_eq!(text("A=b=c").as_deref(), Some("A=b=c"));
        assert_eq!(text("A=").as_deref(), Some("A="));
        assert!(text("PATH").unwrap().starts_with("PATH=/"));
        assert_eq!(text("BANGER_NOT_SET_HERE"), None);
        assert!(variable(&"=x".into()).is_err() && variable(&"".into()).is_err());
    }
}
