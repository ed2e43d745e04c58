//! The manual's pages, of the definitions by which the programs parse.

use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use std::fs;
use std::path::Path;

/// Writes them all, one for each command that help shows.
pub(crate) fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for command in all() {
        fs::write(folder.join(format!("{}.1", name(&command))), page(&command)?)?;
    }
    Ok(())
}

/// Every command that has a page.
fn all() -> Vec<Command> {
    let mut found = Vec::new();
    for program in [banger::cli::command(), banger::daemon::start::command()] {
        let mut program = program.disable_help_subcommand(true);
        program.build();
        below(program, &mut found);
    }
    found
}

fn below(command: Command, found: &mut Vec<Command>) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        below(inner.clone(), found);
    }
    found.push(command);
}

fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// A page. What is generated leaves a date out and lines with a break after another, which formatters complain of.
fn page(command: &Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let mut page = String::from_utf8(page)?.replace("\n.br\n\n.br\n", "\n.sp\n");
    if let Some(examples) = command.get_before_help() {
        page.push_str(&self::examples(&examples.to_string()));
    }
    let title = format!(".TH {} 1 \"\" \"banger {}\" \"banger\"", name(command), env!("CARGO_PKG_VERSION"));
    let line = |line: &str| if line.starts_with(".TH ") { title.clone() } else { line.trim_end().to_owned() };
    Ok(page.lines().map(|text| line(text) + "\n").collect())
}

/// The section of what help begins with: lines as they are.
fn examples(help: &str) -> String {
    let line = |line: &str| format!("{}\n", line.trim_start().replace('\\', "\\e").replace('-', "\\-"));
    let lines: String = help.lines().skip(1).map(line).collect();
    format!(".SH EXAMPLES\n.nf\n{lines}.fi\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::process::Command as Program;

    #[test]
    fn every_command_and_every_option_is_in_the_manual() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
        let commands = all();
        assert!(commands.len() > 40, "{}", commands.len());
        for command in &commands {
            let page = read(name(command));
            for option in command.get_opts().filter(|option| !option.is_hide_set()) {
                let long = option.get_long().map(|long| format!("--{long}"));
                let flag = long.or_else(|| option.get_short().map(|short| format!("-{short}"))).unwrap();
                let shown = format!("\\fB{}\\fR", flag.replace('-', "\\-"));
                let entry = |line: &str| line.starts_with("\\fB\\-") && line.contains(&shown);
                assert!(page.lines().any(entry), "{}: {flag}", name(command));
            }
            assert!(name(command).starts_with("bangerd") || page.contains(".SH EXAMPLES"), "{}", name(command));
            for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
                assert!(page.contains(&name(inner).replace('-', "\\-")), "{}: {}", name(command), name(inner));
                read(name(inner));
            }
        }
        let names: BTreeSet<&str> = commands.iter().map(name).collect();
        for known in ["banger", "bangerd", "banger-vm-run", "banger-vm-workspace-pull", "banger-helper-probe"] {
            assert!(names.contains(known), "{known}: {names:?}");
        }
        assert!(!names.contains("banger-try-inside") && !names.contains("banger-complete-names"));
    }

    #[test]
    fn formatters_have_nothing_to_complain_of() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            // Where a machine has neither there is nothing to hold them to.
            if let Ok(out) = Program::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&path).output() {
                let text = String::from_utf8_lossy(&out.stdout);
                // A date would make each build's pages others.
                let said: Vec<&str> = text.lines().filter(|line| !line.contains("missing date")).collect();
                assert!(said.is_empty(), "{said:#?}");
            }
            if let Ok(out) =
                Program::new("man").args(["--warnings", "-E", "UTF-8", "-l", "-P", "cat"]).arg(&path).output()
            {
                let said = String::from_utf8_lossy(&out.stderr);
                assert!(out.status.success() && said.is_empty(), "{}: {said}", path.display());
                assert!(out.stdout.len() > 200, "{}", path.display());
            }
        }
    }
}
