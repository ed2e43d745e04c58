//! Other programs, run to their end, as the product runs them.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;
use banger::image::program;
pub(crate) use banger::image::program::{indented, plain};

/// Runs a program without input and gives what it wrote to its standard output.
pub(crate) fn output<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// As [`output`], for a command that needs more than arguments.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    Ok(program::output(command)?)
}
