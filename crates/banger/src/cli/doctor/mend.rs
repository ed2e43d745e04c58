//! `doctor --fix`: the commands that the checks name, shown, asked for, and run.

use super::{Check, Doctor, State, tell};
use crate::cli::manner;
use crate::cli::problem::Problem;
use std::process::Command;

/// Runs what mends the failures; true where something was run.
pub(super) fn mend(checks: &[Check], wanted: &Doctor) -> Result<bool, Problem> {
    let commands = commands(checks);
    if commands.is_empty() {
        tell("nothing to mend that a command could");
        return Ok(false);
    }
    commands.iter().for_each(|command| tell(&format!("    {command}")));
    if wanted.dry_run {
        return Ok(false);
    }
    if !manner::yes() && !may()? {
        return Ok(false);
    }
    for command in &commands {
        let status = Command::new("sh").args(["-c", command]).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(Problem::new("not_mended", format!("{command} failed")).why(status)),
            Err(error) => return Err(Problem::new("not_mended", "sh could not be started").why(error)),
        }
    }
    Ok(true)
}

/// The commands among the fixes, once each: what begins with `sudo`, without what is said behind it.
fn commands(checks: &[Check]) -> Vec<String> {
    let bad = checks.iter().filter(|check| matches!(check.state, State::Fail | State::Warn));
    let mut commands: Vec<String> = Vec::new();
    for fix in bad.flat_map(|check| check.fix.first()) {
        let command = fix.split("     ").next().unwrap_or_default().trim_end();
        // A command that only shows mends nothing.
        let mends = command.starts_with("sudo ") && !command.starts_with("sudo nft -a list");
        if mends && !commands.iter().any(|other| other == command) {
            commands.push(command.to_owned());
        }
    }
    commands
}

fn may() -> Result<bool, Problem> {
    let answer = manner::ask("run these? [y/N] ");
    let answer = answer
        .ok_or_else(|| manner::unasked("these may be run", "--fix --yes runs them, --fix --dry-run shows them"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::super::Id;
    use super::*;

    #[test]
    fn commands_are_what_can_be_run_and_nothing_guest_made() {
        let check = |state, fix: &[&str]| Check {
            id: Id::Helper,
            state,
            found: String::new(),
            why: None,
            fix: fix.iter().map(|fix| (*fix).to_owned()).collect(),
            ms: 0,
        };
        let checks = [
            check(State::Fail, &["sudo systemctl start bangerd-root     or: banger try -- CMD", "sudo rm x"]),
            check(State::Warn, &["sudo modprobe dm_snapshot     or a state directory on btrfs"]),
            check(State::Warn, &["sudo modprobe dm_snapshot     or a state directory on btrfs"]),
            check(State::Ok, &["sudo true"]),
            check(State::Fail, &["banger vm prune"]),
            check(State::Fail, &["sudo nft -a list chain ip filter FORWARD     shows it"]),
        ];
        assert_eq!(commands(&checks), ["sudo systemctl start bangerd-root", "sudo modprobe dm_snapshot"]);
    }
}
