//! Other programs, run to their end: quiet when they succeed, with their last lines in the error when they don't.
//!
//! A program runs with the C locale and finds the system's programs; it dies with the thread that started it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use super::error::{Error, Kind};
use super::progress::Watch;

/// Lines of a failed program's output that its error shows.
const LAST_LINES: usize = 5;
/// Bytes of a line that are looked at.
const LONGEST_LINE: u64 = 4096;
/// How often it is asked whether to go on.
const PULSE: Duration = Duration::from_millis(200);

/// A command that dies with the calling thread, however that ends. Not by way of `no_new_privs`: in a user's own
/// namespaces the mapping of his subordinate ids is a set-user-id program's.
#[must_use]
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Runs a program without input and gives what it wrote to its standard output.
///
/// # Errors
/// It isn't there, or it failed.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let name = name(command);
    let out = prepared(command).output().map_err(|cause| start_failed(&name, &cause))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = if out.stderr.is_empty() { &out.stdout } else { &out.stderr };
    Err(failed(&name, out.status, &String::from_utf8_lossy(said)))
}

/// Runs a program without input whose standard output nobody reads; `each` is given the lines of its standard error.
///
/// # Errors
/// It isn't there, it failed, or the watcher stopped it.
pub fn watched(command: &mut Command, watch: &dyn Watch, mut each: impl FnMut(&str)) -> Result<(), Error> {
    let name = name(command);
    prepared(command).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn().map_err(|cause| start_failed(&name, &cause))?);
    let stderr = child.0.stderr.take();
    let (sender, lines) = sync_channel::<String>(64);
    // It ends with the program's last writer, or as soon as nobody listens.
    thread::spawn(move || {
        let mut stderr = BufReader::new(stderr?);
        while let Some(line) = next_line(&mut stderr).ok()? {
            sender.send(line).ok()?;
        }
        Some(())
    });
    let mut last = VecDeque::new();
    loop {
        if watch.is_stopped() {
            return Err(Error::interrupted());
        }
        match lines.recv_timeout(PULSE) {
            Ok(line) => {
                each(&line);
                last.push_back(line);
                if last.len() > 4 * LAST_LINES {
                    last.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.0.wait().map_err(|cause| start_failed(&name, &cause))?;
    if status.success() { Ok(()) } else { Err(failed(&name, status, &Vec::from(last).join("\n"))) }
}

/// A child that doesn't outlive this value.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line without its end; of a very long one only the beginning. `None` at the end.
fn next_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        from.skip_until(b'\n')?;
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// Where an ordinary user's PATH leaves these out, the file system's programs are there all the same.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

fn prepared(command: &mut Command) -> &mut Command {
    sys::child::unblocked(command).env("PATH", path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null())
}

/// What a command runs in the end: behind wrappers the word after the last `--`.
fn name(command: &Command) -> String {
    let words: Vec<_> = command.get_args().collect();
    let inner = words.iter().rposition(|word| *word == "--").and_then(|at| words.get(at + 1));
    let inner = inner.copied().filter(|_| ["setpriv", "unshare"].iter().any(|p| command.get_program() == *p));
    inner.unwrap_or(command.get_program()).to_string_lossy().into_owned()
}

/// Whether a program would be found.
pub(crate) fn is_here(name: &str) -> bool {
    std::env::split_paths(&path()).any(|folder| folder.join(name).is_file())
}

fn start_failed(name: &str, cause: &io::Error) -> Error {
    match cause.kind() {
        io::ErrorKind::NotFound => missing(name),
        _ => Error::new(Kind::Machine, format!("can't start {name}")).why(cause),
    }
}

/// A program that isn't there, with the package that has it.
pub(crate) fn missing(name: &str) -> Error {
    let package = match name {
        "mke2fs" | "e2fsck" | "debugfs" => "e2fsprogs",
        "apt-get" | "apt-cache" | "apt-config" => "apt",
        "dpkg-deb" => "dpkg",
        "ssh" | "ssh-keygen" => "openssh-client",
        "unshare" | "setpriv" | "fallocate" | "prlimit" => "util-linux",
        other => other,
    };
    Error::new(Kind::Machine, format!("there is no program {name} here")).fix(format!("sudo apt install {package}"))
}

fn failed(name: &str, status: ExitStatus, said: &str) -> Error {
    let error = Error::new(Kind::Program, format!("{name} failed ({status})"));
    let shown = indented(said, LAST_LINES);
    if shown.is_empty() { error } else { error.why(shown) }
}

/// The last lines of a text as an error shows them: indented, control characters escaped.
#[must_use]
pub fn indented(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(count)..];
    shown.iter().map(|line| format!("    | {}", plain(line))).collect::<Vec<_>>().join("\n")
}

/// A line that another program wrote, without anything that a terminal would act upon.
#[must_use]
pub fn plain(line: &str) -> String {
    line.trim_end()
        .chars()
        .flat_map(|c| if c.is_control() && c != '\t' { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::progress::{Stage, Unwatched};
    use std::cell::Cell;
    use std::time::Instant;

    #[test]
    fn a_failure_shows_the_last_lines_and_nothing_that_acts() {
        let script = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; printf '\\033[2J\\n'; done >&2; exit 3";
        for error in [
            output(Command::new("sh").args(["-c", script])).unwrap_err(),
            watched(Command::new("sh").args(["-c", script]), &Unwatched, |_| {}).unwrap_err(),
        ] {
            let why = error.why.unwrap();
            assert_eq!(why.lines().count(), LAST_LINES, "{why}");
            assert!(why.contains("| line 9") && why.ends_with("| \\u{1b}[2J"), "{why}");
            assert_eq!(error.kind, Kind::Program);
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err();
        assert_eq!((error.kind, error.fix[0].as_str()), (Kind::Machine, "sudo apt install no-such-program"));
    }

    struct Stops(Cell<u32>);

    impl Watch for Stops {
        fn begin(&self, _: Stage, _: &str) {}

        fn is_stopped(&self) -> bool {
            self.0.set(self.0.get() + 1);
            self.0.get() > 2
        }
    }

    #[test]
    fn a_stopped_program_is_gone() {
        let start = Instant::now();
        let mut sleep = bound("sh");
        sleep.args(["-c", "echo $$ >&2; exec sleep 600"]);
        let pid = Cell::new(0);
        let error = watched(&mut sleep, &Stops(Cell::new(0)), |line| pid.set(line.parse().unwrap())).unwrap_err();
        assert_eq!(error.kind, Kind::Interrupted);
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(pid.get() > 0 && !std::path::Path::new(&format!("/proc/{}", pid.get())).exists());
    }
}
