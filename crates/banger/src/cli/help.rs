//! What help begins with, and what of it is for `--help` alone. `-h` is a screen.

use clap::Command;

/// A command, and examples of it: a command line, and what it is for.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

const EXAMPLES: &[Examples] = &[
    (
        "",
        &[
            ("banger vm run -- uname -a", "a command in a new VM; the VM is gone afterwards"),
            ("banger vm run -it", "a shell in one"),
            ("banger vm run . --pull -- make test", "this work tree goes along, and what was changed comes back"),
            ("banger vm create web --start", "one that stays: then vm exec, ssh, stop, start, rm"),
            ("banger image build dev --include gcc,make", "an image to make VMs of: --image dev"),
            ("banger doctor", "what a VM needs on this machine, and what mends it"),
            ("sudo banger helper init --owner me", "once: whose VMs these are"),
        ],
    ),
    ("vm", &[("banger vm run -- make test", "a new VM for one command"), ("banger vm list", "what there is")]),
    (
        "vm run",
        &[
            ("banger vm run -- uname -a", "its output and exit status; the VM is gone afterwards"),
            ("banger vm run -it", "a shell"),
            ("banger vm run . --pull -- make fix", "with this work tree; changes come back as a branch"),
            ("banger vm run --name web -p 8080:80 -- nginx", "one that stays, and a port of it here"),
            ("banger vm run -d --name web", "one that runs on: vm exec web, vm rm -f web"),
        ],
    ),
    (
        "vm create",
        &[
            ("banger vm create web --memory 2G --start", "a VM named web, and it runs"),
            ("banger vm create web --dry-run", "what would be made"),
        ],
    ),
    (
        "vm start",
        &[
            ("banger vm start web db", "both at once, until commands can be run"),
            ("banger vm start --wait none web", "not waited for"),
        ],
    ),
    ("vm restart", &[("banger vm restart web", "stopped in an orderly way, and started again")]),
    (
        "vm stop",
        &[
            ("banger vm stop web", "in an orderly way; its disk stays"),
            ("banger vm stop --all -t 30s", "all that run; killed after 30 s"),
        ],
    ),
    ("vm kill", &[("banger vm kill web", "at once; what was not written is lost")]),
    (
        "vm rm",
        &[("banger vm rm web", "one that doesn't run, and its disk"), ("banger vm rm -f web db", "those that run too")],
    ),
    (
        "vm prune",
        &[
            ("banger vm prune --dry-run", "what would go"),
            ("banger vm prune --older 7d -f", "what was not used for a week, without a question"),
        ],
    ),
    (
        "vm list",
        &[
            ("banger vm list --running", "as vm ps"),
            ("banger vm list -q", "names alone"),
            ("banger vm list --json=name,state", "for a program"),
        ],
    ),
    ("vm show", &[("banger vm show web", "all that is known, and why its last start failed")]),
    (
        "vm exec",
        &[
            ("banger vm exec web -- make test", "its streams and exit status unchanged"),
            ("banger vm exec -it web", "a shell"),
            ("banger vm exec --start -w /srv web -- ./serve", "started first; in that directory"),
        ],
    ),
    (
        "vm ssh",
        &[
            ("banger vm ssh web", "a shell, by ssh"),
            ("banger vm ssh web -L 8080:localhost:80", "what comes after the name is ssh's"),
        ],
    ),
    (
        "vm logs",
        &[
            ("banger vm logs -f web", "the console, until the VM has ended"),
            ("banger vm logs --since 10m --timestamps web", "the last ten minutes, each line with its time"),
        ],
    ),
    (
        "vm cp",
        &[
            ("banger vm cp src web:/root/", "src becomes /root/src"),
            ("banger vm cp web:/var/log/syslog .", "and out of it"),
        ],
    ),
    ("vm dial", &[("banger vm dial web 80", "standard input and output are the connection")]),
    (
        "vm forward",
        &[
            ("banger vm forward web 8080:80", "http://127.0.0.1:8080 until Ctrl-C"),
            ("banger vm forward web 0:5432", "a free port here, which it names"),
        ],
    ),
    ("vm ports", &[("banger vm ports web", "who listens, and how to get there")]),
    ("vm stats", &[("banger vm stats --watch", "all that run, every 2 s")]),
    (
        "vm workspace",
        &[
            ("banger vm workspace web", "ship the work tree here into web"),
            ("banger vm workspace pull web", "bring its changes back as branch banger/web"),
            ("banger vm workspace pull web --patch - | git apply", "or as a patch"),
        ],
    ),
    ("vm workspace push", &[("banger vm workspace push web --include-untracked", "files that git doesn't know too")]),
    ("vm workspace pull", &[("banger vm workspace pull web", "then: git merge banger/web")]),
    (
        "image",
        &[("banger image list", "what VMs can be made of"), ("banger image build dev", "one of Debian's packages")],
    ),
    (
        "image build",
        &[
            ("banger image build dev --include gcc,make", "Debian with these packages"),
            ("banger image build sys --include systemd-sysv", "for vm run --init"),
        ],
    ),
    (
        "image import",
        &[
            ("banger image import root.tar --name mine", "any root file system"),
            ("docker export C | banger image import - --name mine", "from a pipe"),
        ],
    ),
    ("image pull", &[("banger image pull docker.io/library/debian:12", "an OCI image")]),
    ("image promote", &[("banger image promote web as mine", "a stopped VM's disk")]),
    ("image list", &[("banger image list -q", "names alone")]),
    ("image show", &[("banger image show debian-12", "all that is known")]),
    ("image rm", &[("banger image rm old", "one of which no VM is made")]),
    ("kernel", &[("banger kernel list", "what VMs can be started with")]),
    (
        "kernel import",
        &[
            ("banger kernel import --debian", "Debian's current one"),
            ("banger kernel import bzImage --name mine", "one of your own"),
        ],
    ),
    ("kernel list", &[("banger kernel list", "names, digests, sizes")]),
    ("kernel show", &[("banger kernel show debian-6.1", "all that is known")]),
    ("kernel rm", &[("banger kernel rm old", "one that no VM is started with")]),
    ("template", &[("banger template list", "what new VMs go on from")]),
    (
        "template build",
        &[
            ("banger template build dev --memory 1G", "then: banger vm run --image dev --memory 1G"),
            ("banger template build sys --init", "then: banger vm run --image sys --init"),
        ],
    ),
    ("template list", &[("banger template list", "ids, images, sizes")]),
    ("template show", &[("banger template show dev", "all that is known of dev's")]),
    ("template rm", &[("banger template rm dev", "those of image dev")]),
    ("helper", &[("banger helper list", "what of banger's is in the kernel now")]),
    ("helper init", &[("sudo banger helper init --owner me", "once: whose VMs these are")]),
    ("helper call", &[("banger helper call priv.delete_tap '{\"tap_name\":\"tap-fc-1\"}'", "one method, as it is")]),
    ("helper list", &[("banger helper list", "bridges, taps, guests, VMs")]),
    ("helper probe", &[("banger helper probe tap-fc-1 172.16.0.2", "which rule a guest's packets end at")]),
    ("ssh-config", &[("banger ssh-config --install", "then: ssh web.vm, and rsync, git, editors too")]),
    (
        "doctor",
        &[
            ("banger doctor", "each check, and what mends what is wrong"),
            ("banger doctor --only kvm,way-out", "these alone"),
            ("banger doctor --fix", "show the commands, ask, run them, look again"),
        ],
    ),
    ("try", &[("banger try -- uname -a", "a command in a new VM, nothing installed"), ("banger try -it", "a shell")]),
    ("config", &[("banger config show", "each value, and where it is from")]),
    ("config show", &[("banger config show boot_timeout", "one value")]),
    ("explain", &[("banger explain no_vmm", "what error[no_vmm] means, and what to do")]),
    ("schema", &[("banger schema vm list", "of banger vm list --json")]),
    ("completion", &[("source <(banger completion bash)", "in ~/.bashrc; zsh and fish too")]),
    ("version", &[("banger version", "banger's, and bangerd's")]),
];

/// Flags that few need, by their ids: `--help` has them.
const RARE: &[&str] = &[
    "socket",
    "op_id",
    "progress",
    "color",
    "no_input",
    "json",
    "result",
    "boot_timeout",
    "cold",
    "timings",
    "env_file",
    "no_stdin",
    "no_tty",
    "kernel",
    "no_nat",
    "init",
    "yes",
    "branch",
    "from",
    "include_untracked",
    "dry_run",
    "rm",
    "keep",
    "cpus",
    "workdir",
    "user",
    "interactive",
    "state_dir",
    "runtime_dir",
    "install_meta",
    "mirror",
    "suite",
    "platform",
    "no_clobber",
    "follow_links",
    "owner_of",
    "mode",
    "readonly",
    "base",
    "verbose",
    "quiet",
];

/// The command and all below it, each with its examples before its help.
pub(crate) fn with_examples(command: Command) -> Command {
    below(command, "")
}

fn below(command: Command, path: &str) -> Command {
    let command = match EXAMPLES.iter().find(|(known, _)| *known == path) {
        Some((_, examples)) => command.before_help(shown(examples)),
        None => command,
    };
    let rare = |argument: clap::Arg| match RARE.contains(&argument.get_id().as_str()) && !argument.is_positional() {
        true => argument.hide_short_help(true),
        false => argument,
    };
    command.mut_args(rare).mut_subcommands(|inner| {
        let path = format!("{path} {}", inner.get_name());
        below(inner, path.trim_start())
    })
}

fn shown(examples: &[(&str, &str)]) -> String {
    let width = examples.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let lines = examples.iter().map(|(line, what)| format!("\n  {line:<width$}  {what}"));
    std::iter::once("Examples:".to_owned()).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell's words, as far as the examples have them.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" | ").find(|part| part.contains("banger")).unwrap();
        let line = line.trim_start_matches("sudo ").trim_start_matches("source <(").trim_end_matches(')');
        let (mut words, mut is_quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    fn each(command: &Command, path: &str, act: &mut impl FnMut(&str, &Command)) {
        act(path, command);
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            each(inner, format!("{path} {}", inner.get_name()).trim_start(), act);
        }
    }

    #[test]
    fn every_command_has_examples_that_it_takes() {
        let mut known = Vec::new();
        let mut command = crate::cli::command();
        command.build();
        each(&command, "", &mut |path, command| {
            known.push(path.to_owned());
            let (_, examples) = EXAMPLES.iter().find(|(known, _)| *known == path).unwrap_or_else(|| panic!("{path}"));
            let mut command = command.clone();
            let help = command.render_help().to_string();
            assert!(help.starts_with("Examples:\n  "), "{path}: {help}");
            for (line, _) in *examples {
                assert!(help.contains(line), "{path}: {line}");
                let parsed = crate::cli::command().try_get_matches_from(words(line));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        });
        let none: Vec<&str> =
            EXAMPLES.iter().map(|(path, _)| *path).filter(|path| !known.iter().any(|it| it == path)).collect();
        assert!(none.is_empty(), "no such commands: {none:?}");
    }

    #[test]
    fn the_short_help_is_a_screen_and_the_long_one_has_all() {
        let mut command = crate::cli::command().term_width(100);
        command.build();
        each(&command, "", &mut |path, command| {
            let mut command = command.clone().term_width(100);
            let (short, long) = (command.render_help().to_string(), command.render_long_help().to_string());
            assert!(short.lines().count() <= 40, "{path}: {} lines\n{short}", short.lines().count());
            for argument in command.get_opts().filter(|argument| !argument.is_hide_set()) {
                let flag = format!("--{}", argument.get_long().unwrap());
                assert!(long.contains(&flag), "{path}: {flag}");
            }
        });
    }
}
