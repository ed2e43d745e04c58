//! `vm logs`: a VM's console, read from the file that the daemon hands over.

mod lines;

use crate::api::client::{self, Next};
use crate::api::vm::Vm;
use crate::api::{Fault, Request};
use crate::cli::problem::Problem;
use crate::cli::reach::Asked;
use crate::cli::{output, text};
use crate::{duration, time};
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Logs {
    /// The VM: its name, or 4 or more digits of its id.
    name: String,
    /// Go on until the VM has ended.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N lines.
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Begin with what was written since then: 10m ago, 7d ago, or a time as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<u64>,
    /// What the guest wrote to its console, what its VMM wrote, or both.
    #[arg(long, value_enum, default_value_t = Source::All)]
    source: Source,
    /// Write before each line when its first byte came.
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    asked: Asked,
}

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    /// Both.
    All,
    /// The guest, to its console.
    Console,
    /// The VMM: what it says of itself.
    Vmm,
    /// Commands: nothing of theirs is kept.
    #[value(hide = true)]
    Exec,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::All => "all",
            Source::Console => "console",
            Source::Vmm => "vmm",
            Source::Exec => "exec",
        }
    }
}

impl Logs {
    /// Whether it matters when lines were written.
    fn needs_times(&self) -> bool {
        self.timestamps || self.since.is_some() || self.asked.json
    }
}

/// A time, or how long ago one was: milliseconds since 1970.
fn since(text: &str) -> Result<u64, String> {
    if let Some(seconds) = time::parse_rfc3339(text) {
        return Ok(seconds * 1000);
    }
    let ago = duration::age(text).map_err(|error| format!("{error}; or a time: 2026-01-31T12:00:00Z"))?;
    Ok(time::unix_now_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
}

/// How often a console is looked at for more.
const LOOK: Duration = Duration::from_millis(100);
/// And after how many looks without any, whether its VM still runs.
const ASK: u32 = 10;

pub(super) fn logs(logs: &Logs) -> Result<(), Problem> {
    if logs.source == Source::Exec {
        let kept = "what commands print goes to whoever runs them; nothing of it is kept";
        return Err(Problem::usage(kept).fix(format!("banger vm exec {} -- CMD 2>&1 | tee FILE", logs.name)));
    }
    let mut file = console(logs).map_err(Problem::of_fault)?;
    let failed = |error: io::Error| Problem::new("console", "the console can't be read or shown").why(error);
    // A long console's beginning was given back.
    let begin = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap_or(0);
    file.seek(SeekFrom::Start(begin)).map_err(failed)?;
    if logs.needs_times() || logs.source != Source::All {
        return lines::show(logs, file, begin);
    }
    if let Some(lines) = logs.tail {
        to_last_lines(&mut file, lines).map_err(failed)?;
    }
    let mut quiet = 0;
    loop {
        match pass_on(&mut file) {
            // Whoever read has had enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(failed(error)),
            Ok(0) if !logs.follow => return Ok(()),
            Ok(0) => {
                quiet += 1;
                if quiet % ASK == 0 && !runs(logs)? {
                    return pass_on(&mut file).map(drop).map_err(failed);
                }
                if output::nobody_reads_within(LOOK) {
                    return Ok(());
                }
            }
            Ok(_) => quiet = 0,
        }
    }
}

fn console(logs: &Logs) -> Result<File, Fault> {
    let call = logs.asked.reach.call(Request::VmLogs { name: logs.name.clone() });
    let mut running = client::begin(&logs.asked.reach.socket, &call)?;
    loop {
        match running.event()? {
            Next::Attached(_, console) => return Ok(File::from(console)),
            Next::Stage(_) => {}
            Next::Done(_) => return Err(Fault::bug("no console came")),
        }
    }
}

fn runs(logs: &Logs) -> Result<bool, Problem> {
    match logs.asked.reach.try_ask::<Vm>(Request::VmShow { name: logs.name.clone() }) {
        Ok(vm) => Ok(["starting", "running", "stopping"].contains(&vm.state.as_str())),
        Err(fault) if fault.code == "no_such_vm" => Ok(false),
        Err(fault) => Err(Problem::of_fault(fault)),
    }
}

/// All that there is by now: its bytes, or on a terminal its text with whatever could move the cursor escaped.
fn pass_on(file: &mut File) -> io::Result<usize> {
    let mut bytes = Vec::new();
    let read = file.take(1 << 20).read_to_end(&mut bytes)?;
    let mut out = io::stdout().lock();
    if output::on_terminal() {
        let shown = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
        let lines: Vec<String> = shown.split('\n').map(text::line).collect();
        out.write_all(lines.join("\n").as_bytes())?;
    } else {
        out.write_all(&bytes)?;
    }
    out.flush()?;
    Ok(read)
}

/// Puts the file's position to its last lines.
fn to_last_lines(file: &mut File, lines: usize) -> io::Result<()> {
    const STEP: u64 = 64 << 10;
    let end = file.metadata()?.len();
    let mut from = end;
    let mut seen = 0;
    while from > 0 {
        let begin = from.saturating_sub(STEP);
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(from - begin).read_to_end(&mut bytes)?;
        for (at, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let next = begin + at as u64 + 1;
            // The last line's own end does not begin another.
            if next == end {
                continue;
            }
            seen += 1;
            if seen == lines {
                return file.seek(SeekFrom::Start(next)).map(drop);
            }
        }
        from = begin;
    }
    file.seek(SeekFrom::Start(if lines == 0 { end } else { 0 })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages() {
        assert_eq!(since("2026-01-31T12:00:00Z"), Ok(1_769_860_800_000));
        let begun = since("1h").unwrap();
        let hour = time::unix_now_ms() - begun;
        assert!((3_600_000..3_700_000).contains(&hour), "{hour}");
        for bad in ["", "yesterday", "2026-01-31", "-1h"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_lines() {
        let mut file = tempfile::tempfile().unwrap();
        let long = "x".repeat(70_000);
        write!(file, "a\n{long}\nc\nd\n").unwrap();
        let mut rest = |lines| {
            to_last_lines(&mut file, lines).unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(rest(0), "");
        assert_eq!(rest(1), "d\n");
        assert_eq!(rest(2), "c\nd\n");
        assert_eq!(rest(3), format!("{long}\nc\nd\n"));
        assert_eq!(rest(9), format!("a\n{long}\nc\nd\n"));
    }
}
