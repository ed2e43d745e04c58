//! Completion: the shells' scripts know commands and flags; names they ask for, of this program, which asks bangerd.

use super::{explain, output, schema, vm};
use crate::api::Request;
use crate::api::asset::Assets;
use crate::api::vm::{Vm, Vms};
use crate::cli::problem::Problem;
use crate::cli::reach::soon;
use crate::config::KEYS;
use clap::{Arg, Args, Command};
use clap_complete::Shell;

#[derive(Args)]
pub(crate) struct Completion {
    /// Which shell's.
    shell: Shell,
}

/// What the scripts call.
#[derive(Args)]
pub(crate) struct Names {
    /// The words of the command line, its program's name first, the one to be completed last.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// What is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// VMs that run, that don't, or all of them.
    Vms(Option<bool>),
    /// A VM's name and a colon, before a path.
    VmPaths,
    /// A path in a VM's guest.
    GuestPaths,
    Images,
    Kernels,
    Codes,
    Schemas,
    Keys,
}

/// Prints a shell's script.
pub(crate) fn script(wanted: &Completion) -> Result<(), Problem> {
    let mut script = Vec::new();
    clap_complete::generate(wanted.shell, &mut super::command(), "banger", &mut script);
    let script = String::from_utf8_lossy(&script);
    output::data(&match wanted.shell {
        Shell::Bash => format!("{script}{BASH}"),
        Shell::Fish => format!("{script}{FISH}"),
        // As a file of its own it is called when it is loaded; as a part of another it is only made known.
        Shell::Zsh => match script.rsplit_once("if [ \"$funcstack[1]\"") {
            Some((functions, _)) => format!("{functions}{ZSH}"),
            None => script.into_owned(),
        },
        _ => script.into_owned(),
    })
}

const BASH: &str = r#"
_banger_names() {
    local name
    local -a names=()
    while IFS= read -r name; do
        names+=("$name")
    done < <("$1" complete-names -- "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
    if [[ ${#names[@]} -eq 0 ]]; then
        _banger "$@"
        return
    fi
    COMPREPLY=("${names[@]}")
    if [[ "${names[0]}" == */* ]]; then
        compopt -o nospace 2>/dev/null
    fi
    if [[ "${names[0]}" == *: ]]; then
        compopt -o nospace 2>/dev/null
        while IFS= read -r name; do
            COMPREPLY+=("$name")
        done < <(compgen -f -- "$2")
    fi
}
complete -F _banger_names -o bashdefault -o default banger
"#;

const ZSH: &str = r#"_banger_names() {
    local -a names
    names=(${(f)"$("$words[1]" complete-names -- "${(@)words[1,CURRENT]}" 2>/dev/null)"})
    if (( ! $#names )); then
        _banger "$@"
    elif [[ $names[1] == *:*/* ]]; then
        compadd -S '' -a names
    elif [[ $names[1] == *: ]]; then
        compadd -S '' -a names
        _files
    else
        compadd -a names
    fi
}

if [ "$funcstack[1]" = "_banger" ]; then
    _banger_names "$@"
else
    compdef _banger_names banger
fi
"#;

const FISH: &str = r"
complete -c banger -a '(banger complete-names -- (commandline -opc) (commandline -ct) 2>/dev/null)'
";

/// Prints the names that the last word may become, a line each. Whatever goes wrong: none.
pub(crate) fn names(wanted: &Names) -> Result<(), Problem> {
    let mut command = super::command();
    command.build();
    let found = look(&command, &wanted.words);
    let mut names: Vec<String> = found.commands;
    match found.kind {
        Some(Kind::GuestPaths) => {
            let directory = found.begun.rfind('/').map_or("", |end| &found.begun[..=end]);
            let there = vm::paths::listed(&found.vm, directory).unwrap_or_default();
            names.extend(there.iter().map(|name| format!("{directory}{name}")));
        }
        Some(kind) => names.extend(known(kind)),
        None => {}
    }
    let is_plain = |name: &&String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+@%,".contains(&b));
    let lines = names.iter().filter(is_plain).filter(|name| name.starts_with(&found.begun));
    output::data(&lines.map(|name| format!("{}{name}\n", found.before)).collect::<String>())
}

/// What the last word is.
#[derive(Default)]
struct Found {
    kind: Option<Kind>,
    /// Commands that may stand in the name's place.
    commands: Vec<String>,
    /// What of the word is no name: `--image=`, `web:`.
    before: String,
    /// The VM in whose guest a path is.
    vm: String,
    /// How the name begins.
    begun: String,
}

/// What is in a line is a word. Bash takes `web:/etc` apart, and wants the last part alone.
fn look(root: &Command, words: &[String]) -> Found {
    let mut whole: Vec<String> = Vec::new();
    let mut apart = false;
    for word in words {
        match whole.last_mut() {
            Some(last) if word == ":" || (apart && last.ends_with(':')) => {
                last.push_str(word);
                apart = true;
            }
            _ => {
                whole.push(word.clone());
                apart = false;
            }
        }
    }
    let mut found = look_at(root, &whole);
    if found.kind == Some(Kind::VmPaths)
        && let Some((vm, path)) = found.begun.split_once(':').filter(|(vm, _)| !vm.contains('/'))
    {
        let before = if apart { String::new() } else { format!("{vm}:") };
        found = Found { kind: Some(Kind::GuestPaths), before, vm: vm.into(), begun: path.into(), ..Found::default() };
    }
    found
}

fn look_at(root: &Command, words: &[String]) -> Found {
    let Some((last, before)) = words.split_last() else { return Found::default() };
    let (mut command, mut path, mut positional) = (root, Vec::new(), 0);
    let mut awaiting: Option<&Arg> = None;
    for word in before.iter().skip(1) {
        // Bash takes `--image=x` apart.
        if word == "=" && awaiting.is_some() {
            continue;
        }
        if awaiting.take().is_some() {
            continue;
        }
        match (word.as_str(), command.find_subcommand(word)) {
            ("--", _) => return Found::default(),
            (flag, _) if flag.starts_with('-') => awaiting = awaited(command, flag),
            (_, Some(inner)) if positional == 0 => {
                path.push(inner.get_name());
                command = inner;
            }
            _ => positional += 1,
        }
    }
    let begun = if last == "=" { "" } else { last };
    if let Some(argument) = awaiting {
        return Found { kind: kind(&path, argument.get_id().as_str()), begun: begun.into(), ..Found::default() };
    }
    if let Some((flag, begun)) = last.split_once('=').filter(|(flag, _)| flag.starts_with("--")) {
        let kind = awaited(command, flag).and_then(|argument| kind(&path, argument.get_id().as_str()));
        return Found { kind, begun: begun.into(), before: format!("{flag}="), ..Found::default() };
    }
    if last.starts_with('-') {
        return Found::default();
    }
    let places: Vec<&Arg> = command.get_positionals().collect();
    let argument = places.get(positional).or_else(|| places.last().filter(|last| takes_many(last)));
    let kind = argument.and_then(|argument| kind(&path, argument.get_id().as_str()));
    let commands = command.get_subcommands().filter(|inner| kind.is_some() && positional == 0 && !inner.is_hide_set());
    let commands = commands.map(|inner| inner.get_name().to_owned()).collect();
    Found { kind, commands, begun: begun.into(), ..Found::default() }
}

fn takes_many(argument: &Arg) -> bool {
    argument.get_num_args().is_some_and(|range| range.max_values() > 1)
}

/// The option whose value comes next, behind that flag or the last of several short ones.
fn awaited<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let is_meant = |argument: &&Arg| match flag.strip_prefix("--") {
        Some(long) => argument.get_long() == Some(long),
        None => argument.get_short() == flag.chars().last(),
    };
    let takes_a_word = |argument: &&Arg| argument.get_action().takes_values() && !argument.is_require_equals_set();
    command.get_opts().filter(takes_a_word).find(is_meant)
}

/// What a command's argument names, where it names something that is there.
fn kind(path: &[&str], argument: &str) -> Option<Kind> {
    Some(match (path, argument) {
        (_, "image") => Kind::Images,
        (_, "kernel") => Kind::Kernels,
        (["vm", "create"], _) => return None,
        (["vm", "start"], "names") | (["image", "promote"], "vm") => Kind::Vms(Some(false)),
        (["vm", "show" | "rm" | "logs" | "restart" | "workspace", ..], "name" | "names") => Kind::Vms(None),
        (["vm", "cp"], "sources" | "destination") => Kind::VmPaths,
        (["vm", ..] | ["exec" | "ssh"], "name" | "names") if path != ["vm", "run"] => Kind::Vms(Some(true)),
        (["image", "show" | "rm"], "names") => Kind::Images,
        (["kernel", "show" | "rm"], "names") => Kind::Kernels,
        (["explain"], _) => Kind::Codes,
        (["schema"], _) => Kind::Schemas,
        (["config", "show"], "key") => Kind::Keys,
        _ => return None,
    })
}

/// The names that there are.
fn known(kind: Kind) -> Vec<String> {
    let vms = |wanted: &dyn Fn(&Vm) -> bool| {
        let there: Option<Vms> = soon(Request::VmList {});
        let vms = there.into_iter().flat_map(|all| all.vms).filter(wanted);
        vms.map(|vm| vm.name).collect::<Vec<_>>()
    };
    let assets = |request| {
        let there: Option<Assets> = soon(request);
        there.into_iter().flat_map(|all| all.assets).map(|asset| asset.name).collect()
    };
    match kind {
        Kind::Vms(runs) => vms(&|vm| runs.is_none_or(|runs| runs == (vm.state == "running"))),
        Kind::VmPaths => vms(&|vm| vm.state == "running").iter().map(|name| format!("{name}:")).collect(),
        // It takes a directory to know these.
        Kind::GuestPaths => Vec::new(),
        Kind::Images => assets(Request::ImageList {}),
        Kind::Kernels => assets(Request::KernelList {}),
        Kind::Codes => explain::codes().map(str::to_owned).collect(),
        Kind::Schemas => schema::names().map(str::to_owned).collect(),
        Kind::Keys => KEYS.iter().map(|key| key.name.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_known_by_those_before() {
        let mut command = crate::cli::command();
        command.build();
        for (line, kind, before, begun) in [
            ("banger vm show we", Some(Kind::Vms(None)), "", "we"),
            ("banger -q vm --color never stop a ", Some(Kind::Vms(Some(true))), "", ""),
            ("banger vm start -", None, "", ""),
            ("banger vm start ", Some(Kind::Vms(Some(false))), "", ""),
            ("banger vm exec we", Some(Kind::Vms(Some(true))), "", "we"),
            ("banger vm exec -u root we", Some(Kind::Vms(Some(true))), "", "we"),
            ("banger vm exec web ma", None, "", "ma"),
            ("banger vm exec web -- ma", None, "", ""),
            ("banger exec we", Some(Kind::Vms(Some(true))), "", "we"),
            ("banger vm create we", None, "", "we"),
            ("banger vm run --name we", None, "", "we"),
            ("banger vm run --image de", Some(Kind::Images), "", "de"),
            ("banger vm run --image=de", Some(Kind::Images), "--image=", "de"),
            ("banger vm run --image = de", Some(Kind::Images), "", "de"),
            ("banger vm run --image =", Some(Kind::Images), "", ""),
            ("banger vm create x --kernel ", Some(Kind::Kernels), "", ""),
            ("banger vm delete we", Some(Kind::Vms(None)), "", "we"),
            ("banger vm cp src we", Some(Kind::VmPaths), "", "we"),
            ("banger vm cp src web:/et", Some(Kind::GuestPaths), "web:", "/et"),
            ("banger vm cp src web : /et", Some(Kind::GuestPaths), "", "/et"),
            ("banger vm cp web :", Some(Kind::GuestPaths), "", ""),
            ("banger vm cp web : /etc/x db : ", Some(Kind::GuestPaths), "", ""),
            ("banger vm cp ./a:b", Some(Kind::VmPaths), "", "./a:b"),
            ("banger vm run -p 80 : 80 --image de", Some(Kind::Images), "", "de"),
            ("banger vm workspace ", Some(Kind::Vms(None)), "", ""),
            ("banger vm workspace pull we", Some(Kind::Vms(None)), "", "we"),
            ("banger image promote we", Some(Kind::Vms(Some(false))), "", "we"),
            ("banger image promote web as", None, "", "as"),
            ("banger image rm a b", Some(Kind::Images), "", "b"),
            ("banger image build de", None, "", "de"),
            ("banger kernel show ", Some(Kind::Kernels), "", ""),
            ("banger explain no_", Some(Kind::Codes), "", "no_"),
            ("banger config show na", Some(Kind::Keys), "", "na"),
            ("banger vm ", None, "", ""),
            ("banger", None, "", "banger"),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let found = look(&command, &words);
            assert_eq!((found.kind, found.before.as_str()), (kind, before), "{line}");
            assert!(found.kind.is_none() || found.begun == begun, "{line}: {}", found.begun);
        }
        let words = ["banger", "vm", "workspace", ""].map(str::to_owned);
        assert_eq!(look(&command, &words).commands, ["push", "pull"]);
    }
}
