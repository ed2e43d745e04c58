//! The command line: that of Firecracker's jailer, read into one value or refused with the reason.

use crate::cgroup::{self, Version};
use crate::limits::Limits;
use lexopt::prelude::*;
use std::ffi::OsString;

/// Where jails are made unless told otherwise; Firecracker's place.
const DEFAULT_BASE: &str = "/srv/jailer";

/// What was asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A text to be printed.
    Print(String),
    /// A jail.
    Run(Box<Args>),
}

/// A jail, and who is to run in it.
#[derive(Debug)]
pub(crate) struct Args {
    /// The VM's id, the jail's name.
    pub(crate) id: String,
    /// The VMM's program: an absolute path.
    pub(crate) exec_file: String,
    /// The user that it runs as; not root.
    pub(crate) uid: u32,
    /// Its group; not root's.
    pub(crate) gid: u32,
    /// The directory below which jails are made: an absolute path.
    pub(crate) base: String,
    /// The network namespace to join: an absolute path.
    pub(crate) netns: Option<String>,
    /// Whether it gets a session of its own, and `/dev/null` for its three streams.
    pub(crate) daemonize: bool,
    /// Whether it gets a PID namespace of its own.
    pub(crate) new_pid_ns: bool,
    /// Whether descriptor 3 is the VMM's, who finds it in a `/proc` of its own processes.
    pub(crate) inherit: bool,
    /// Its control group.
    pub(crate) cgroup: cgroup::Asked,
    /// What its process is bounded by.
    pub(crate) limits: Limits,
    /// What stood behind `--`: the VMM's own arguments.
    pub(crate) rest: Vec<OsString>,
}

const HELP: &str = "
Options, as those of Firecracker's jailer:
  --id ID                  the VM's id: 1 to 64 letters, digits, -
  --exec-file PATH         the VMM's program: root's, and writable by nobody else
  --uid UID, --gid GID     whom it runs as; not root
  --chroot-base-dir DIR    jails are DIR/NAME/ID/root [/srv/jailer]; DIR and all above it are root's alone
  --parent-cgroup PATH     the control group above the VM's own [NAME]
  --cgroup-version 1|2     [1]
  --cgroup FILE=VALUE      a value of the VM's control group; any number
  --resource-limit NAME=N  fsize or no-file; any number
  --netns PATH             the network namespace to join
  --daemonize              a session of its own, /dev/null for its streams
  --new-pid-ns             a PID namespace of its own
  --inherit                not Firecracker's: descriptor 3 is the VMM's, which finds it below a /proc of its own
                           processes alone; started as the first process of a PID namespace
  --version, --help
NAME is the program's, and `firecracker` for `banger-qemu`. What follows -- is given to the VMM.
";

/// Reads the command line.
///
/// # Errors
/// One sentence for the user.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    let mut id = None;
    let mut exec_file = None;
    let mut uid = None;
    let mut gid = None;
    let mut base = None;
    let mut netns = None;
    let mut parent = None;
    let mut version = None;
    let (mut daemonize, mut new_pid_ns, mut inherit) = (false, false, false);
    let mut values = Vec::new();
    let mut limits = Limits::default();

    let (ours, rest) = split(words);
    let mut parser = lexopt::Parser::from_args(ours);
    while let Some(word) = parser.next().map_err(|error| error.to_string())? {
        let name = match word {
            Long(name) => name.to_owned(),
            other => return Err(other.unexpected().to_string()),
        };
        let mut value = || text(&name, parser.value());
        match name.as_str() {
            "id" => once(&name, &mut id, value()?)?,
            "exec-file" => once(&name, &mut exec_file, absolute(&name, value()?)?)?,
            "uid" => once(&name, &mut uid, number(&name, &value()?)?)?,
            "gid" => once(&name, &mut gid, number(&name, &value()?)?)?,
            "chroot-base-dir" => once(&name, &mut base, absolute(&name, value()?)?)?,
            "netns" => once(&name, &mut netns, absolute(&name, value()?)?)?,
            "parent-cgroup" => once(&name, &mut parent, cgroup::parent(&value()?)?)?,
            "cgroup-version" => once(&name, &mut version, Version::parse(&value()?)?)?,
            "cgroup" => values.push(cgroup::Setting::parse(&value()?)?),
            "resource-limit" => limits.set(&value()?)?,
            "daemonize" => daemonize = true,
            "new-pid-ns" => new_pid_ns = true,
            "inherit" => inherit = true,
            "version" => return Ok(Asked::Print(self::version())),
            "help" => return Ok(Asked::Print(format!("{}{HELP}", self::version()))),
            _ => return Err(format!("--{name} is no option; --help lists them")),
        }
    }
    let needed = |name: &str| format!("--{name} is missing");
    let exec_file: String = exec_file.ok_or_else(|| needed("exec-file"))?;
    let id = id.ok_or_else(|| needed("id"))?;
    if !is_id(&id) {
        return Err("--id must be 1 to 64 letters, digits and -".into());
    }
    if inherit && (new_pid_ns || daemonize) {
        return Err("--inherit goes with neither --new-pid-ns nor --daemonize".into());
    }
    let name = name_of(&exec_file).to_owned();
    Ok(Asked::Run(Box::new(Args {
        id,
        uid: uid.ok_or_else(|| needed("uid"))?,
        gid: gid.ok_or_else(|| needed("gid"))?,
        base: base.unwrap_or_else(|| DEFAULT_BASE.to_owned()),
        netns,
        daemonize,
        new_pid_ns,
        inherit,
        cgroup: cgroup::Asked {
            version: version.unwrap_or(Version::One),
            has_parent: parent.is_some(),
            parent: parent.unwrap_or_else(|| vec![name]),
            settings: values,
        },
        limits,
        exec_file,
        rest,
    })))
}

/// The first line is looked for by clients of Firecracker's.
fn version() -> String {
    format!("Jailer v{} (banger-jailer)\n", env!("CARGO_PKG_VERSION"))
}

/// What a jail is called after: the program, and `firecracker` for what speaks as Firecracker.
pub(crate) fn name_of(exec_file: &str) -> &str {
    match exec_file.rsplit('/').next().unwrap_or_default() {
        "banger-qemu" => "firecracker",
        name => name,
    }
}

/// Our own words, and the VMM's behind the first `--`.
fn split(words: impl IntoIterator<Item = OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let mut ours: Vec<OsString> = words.into_iter().collect();
    let Some(at) = ours.iter().position(|word| word == "--") else { return (ours, Vec::new()) };
    let rest = ours.split_off(at).split_off(1);
    (ours, rest)
}

fn once<T>(name: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("--{name} stands there twice")),
    }
}

fn text(name: &str, value: Result<OsString, lexopt::Error>) -> Result<String, String> {
    let value = value.map_err(|error| error.to_string())?;
    value.into_string().map_err(|value| format!("--{name}: {value:?} is no UTF-8"))
}

fn number(name: &str, value: &str) -> Result<u32, String> {
    let number = value.parse::<u32>().ok().filter(|_| !value.starts_with('+'));
    match number {
        None | Some(u32::MAX) => Err(format!("--{name}: {value:?} is no id")),
        Some(0) => Err(format!("--{name} is root's: a VMM is somebody else")),
        Some(number) => Ok(number),
    }
}

/// An absolute path of parts that mean themselves.
fn absolute(name: &str, path: String) -> Result<String, String> {
    let mut parts = path.strip_prefix('/').unwrap_or("..").split('/');
    if path.contains('\0') || parts.any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("--{name}: {path:?} must be an absolute path without empty, . or .. parts"));
    }
    Ok(path)
}

fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    const GOOD: &str = "--id a --exec-file /usr/bin/firecracker --uid 5 --gid 6";

    fn args(line: &str) -> Args {
        match parse(words(line)) {
            Ok(Asked::Run(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn all_options() {
        let least = args(GOOD);
        assert_eq!((least.id.as_str(), least.uid, least.gid, least.base.as_str()), ("a", 5, 6, "/srv/jailer"));
        assert_eq!(least.cgroup.parent, ["firecracker"]);
        assert!(!least.daemonize && !least.new_pid_ns && least.rest.is_empty() && least.netns.is_none());
        let most = args(&format!(
            "{GOOD} --chroot-base-dir /j --parent-cgroup a/b --cgroup-version 2 --cgroup memory.max=1 --cgroup \
             pids.max=2 --resource-limit fsize=3 --resource-limit no-file=4 --netns /run/netns/x --daemonize \
             --new-pid-ns -- --api-sock x -- --id y"
        ));
        assert_eq!((most.base.as_str(), most.netns.as_deref()), ("/j", Some("/run/netns/x")));
        assert_eq!((most.cgroup.parent.len(), most.cgroup.settings.len()), (2, 2));
        assert_eq!((most.limits.file_size, most.limits.open_files), (Some(3), 4));
        assert_eq!(most.rest, words("--api-sock x -- --id y"));
        assert!(most.daemonize && most.new_pid_ns);
    }

    #[test]
    fn a_jail_of_qemus_is_called_as_firecrackers() {
        assert_eq!(name_of("/usr/libexec/banger/banger-qemu"), "firecracker");
        assert_eq!(name_of("/opt/vmm"), "vmm");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, told) in [
            ("--exec-file /f --uid 1 --gid 1", "--id is missing"),
            ("--id a --uid 1 --gid 1", "--exec-file is missing"),
            ("--id a --exec-file /f --gid 1", "--uid is missing"),
            ("--id a --exec-file /f --uid 1", "--gid is missing"),
            ("--id a/b --exec-file /f --uid 1 --gid 1", "--id must be"),
            ("--id .. --exec-file /f --uid 1 --gid 1", "--id must be"),
            ("--id a --exec-file f --uid 1 --gid 1", "--exec-file: \"f\" must be"),
            ("--id a --exec-file /a/../f --uid 1 --gid 1", "--exec-file: "),
            ("--id a --exec-file /f --uid 0 --gid 1", "--uid is root's"),
            ("--id a --exec-file /f --uid 1 --gid 0", "--gid is root's"),
            ("--id a --exec-file /f --uid -1 --gid 1", "--uid: "),
            ("--id a --exec-file /f --uid 4294967295 --gid 1", "--uid: "),
            ("--id a --id b", "--id stands there twice"),
            ("--id a --exec-file /f --uid 1 --gid 1 --inherit --new-pid-ns", "--inherit goes with"),
            ("--what", "--what is no option"),
            ("-i", "invalid option '-i'"),
            ("--id", "missing argument"),
        ] {
            let error = parse(words(line)).unwrap_err();
            assert!(error.starts_with(told), "{line}: {error}");
        }
    }

    #[test]
    fn version_and_help() {
        for (line, start) in [("--version", "Jailer v"), ("--help", "Jailer v")] {
            assert!(matches!(parse(words(line)), Ok(Asked::Print(text)) if text.starts_with(start)));
        }
        assert_eq!(args(&format!("{GOOD} -- --version")).rest, words("--version"));
    }
}
