//! What could not be parsed: help, which is asked for that way, and mistakes of the command line.

use super::problem::Problem;
use super::{command, manner, output, vm};
use crate::daemon::error::exit::USAGE;
use crate::near;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use std::process::ExitCode;

/// Help, a version, or a mistake.
pub(super) fn refused(error: &clap::Error) -> ExitCode {
    let words = || std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let wants_json = words().take_while(|word| word != "--").any(|w| w == "--json" || w.starts_with("--json="));
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if error.exit_code() == 0 || (is_help && !wants_json) {
        let _ = error.print();
        return ExitCode::from(if is_help { USAGE } else { 0 });
    }
    manner::Manner::guessed(std::env::args_os()).take();
    if wants_json {
        output::failures_as_json();
    }
    let (path, near) = meant(words());
    // Where a command's own status may be 2, ours is another.
    let runs = ["vm run", "vm exec", "run", "exec", "try"].contains(&path.as_str());
    let exit = if runs { vm::OURS } else { USAGE };
    output::failure(&Problem::of_usage(error, &path, near), exit);
    ExitCode::from(exit)
}

/// The command that these words mean, which could not be parsed; and what is near to a command or a flag that there isn't.
fn meant(mut words: impl Iterator<Item = String>) -> (String, Option<String>) {
    let definition = command();
    let (mut at, mut path, mut near) = (&definition, Vec::new(), None);
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or_default();
            let flags = || at.get_arguments().chain(definition.get_arguments());
            match flags().find(|known| known.get_long_and_visible_aliases().is_some_and(|all| all.contains(&flag))) {
                Some(known) if known.get_action().takes_values() && !known.is_require_equals_set() => {
                    if !word.contains('=') {
                        words.next();
                    }
                }
                Some(_) => {}
                None => {
                    let shown = flags().filter(|known| !known.is_hide_set()).filter_map(Arg::get_long);
                    near = near.or_else(|| near::nearest(flag, shown).map(|near| format!("--{near}")));
                }
            }
        } else if !word.starts_with('-') {
            let Some(inner) = at.find_subcommand(&word) else {
                let shown = at.get_subcommands().filter(|inner| !inner.is_hide_set());
                let named = near::nearest(&word, shown.map(Command::get_name));
                return (path.join(" "), near.or(named.map(str::to_owned)));
            };
            path.push(inner.get_name());
            at = inner;
        }
    }
    (path.join(" "), near)
}
