//! `vm logs`: a VM's console, read from the file that the daemon hands over.

use crate::api::client::{self, Next};
use crate::api::vm::Vm;
use crate::api::{Fault, Request};
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use crate::cli::{output, text};
use clap::Args;
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
    #[command(flatten)]
    reach: Reach,
}

/// How often a console is looked at for more.
const LOOK: Duration = Duration::from_millis(100);
/// And after how many looks without any, whether its VM still runs.
const ASK: u32 = 10;

pub(super) fn logs(logs: &Logs) -> Result<(), Problem> {
    let mut file = console(logs).map_err(Problem::of_fault)?;
    let failed = |error: io::Error| Problem::new("console", "the console can't be read or shown").why(error);
    // A long console's beginning was given back.
    if let Ok(begin) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)) {
        file.seek(SeekFrom::Start(begin)).map_err(failed)?;
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
                std::thread::sleep(LOOK);
            }
            Ok(_) => quiet = 0,
        }
    }
}

fn console(logs: &Logs) -> Result<File, Fault> {
    let call = logs.reach.call(Request::VmLogs { name: logs.name.clone() });
    let mut running = client::begin(&logs.reach.socket, &call)?;
    loop {
        match running.event()? {
            Next::Attached(_, console) => return Ok(File::from(console)),
            Next::Stage(_) => {}
            Next::Done(_) => return Err(Fault::bug("no console came")),
        }
    }
}

fn runs(logs: &Logs) -> Result<bool, Problem> {
    match logs.reach.try_ask::<Vm>(Request::VmShow { name: logs.name.clone() }) {
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
