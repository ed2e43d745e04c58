//! Other programs, run to their end: quiet when they succeed, with their last lines in the error when they don't.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed program's output that its error shows.
const LAST_LINES: usize = 8;

/// Runs a program without input and gives what it wrote to its standard output.
pub(crate) fn output<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// As [`output`], for a command that needs more than arguments.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = match command.stdin(Stdio::null()).output() {
        Ok(out) => out,
        Err(e) if e.kind() == io::ErrorKind::NotFound => bail!("there is no program {program} here; install it"),
        Err(e) => return Err(e).with_context(|| format!("can't start {program}")),
    };
    if !out.status.success() {
        bail!("{program} failed ({}):\n{}", out.status, last_lines(&out));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn last_lines(out: &Output) -> String {
    let text = String::from_utf8_lossy(if out.stderr.is_empty() { &out.stdout } else { &out.stderr });
    indented(&text, LAST_LINES)
}

/// The last lines of a text as an error shows them: indented, control bytes escaped.
pub(crate) fn indented(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(count)..];
    shown.iter().map(|line| format!("    | {}", plain(line))).collect::<Vec<_>>().join("\n")
}

/// A line that a guest or another program wrote, without anything that a terminal would act upon.
pub(crate) fn plain(line: &str) -> String {
    line.trim_end()
        .chars()
        .flat_map(|c| if c.is_control() && c != '\t' { c.escape_default().collect() } else { vec![c] })
        .collect()
}
