//! The command line: Firecracker's options, read into one value or refused with the reason.

use std::path::PathBuf;

use lexopt::prelude::*;
use wire::firecracker::{API_VERSION, HostPath, InstanceId, LogLevel, ResourceId};

use crate::snapshot;

/// Where the API listens unless told otherwise; Firecracker's place.
const DEFAULT_API_SOCK: &str = "/run/firecracker.socket";
/// The id of a VM that was given none.
const DEFAULT_ID: &str = "anonymous-instance";
/// The most bytes of a request's body unless told otherwise.
const DEFAULT_MAX_BODY: usize = 51_200;

/// What was asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A text to be printed.
    Print(String),
    /// A VM.
    Run(Box<Args>),
}

/// A drive's layer: the drive's file is only read, and what the guest writes goes into this one.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The drive's id.
    pub(crate) drive: ResourceId,
    /// A qcow2 file of the drive's size.
    pub(crate) path: HostPath,
}

/// How to run.
#[derive(Debug)]
pub(crate) struct Args {
    /// The API's socket; none with `--no-api`.
    pub(crate) api_sock: Option<PathBuf>,
    /// The VM's id.
    pub(crate) id: InstanceId,
    /// A file that says what to boot at once.
    pub(crate) config_file: Option<PathBuf>,
    /// The log.
    pub(crate) log_path: Option<HostPath>,
    /// How much is logged.
    pub(crate) level: Option<LogLevel>,
    /// Whether a line of the log names its level.
    pub(crate) show_level: Option<bool>,
    /// The metrics.
    pub(crate) metrics_path: Option<HostPath>,
    /// The most bytes of a request's body.
    pub(crate) max_body: usize,
    /// A layer over one of its drives.
    pub(crate) layer: Option<Layer>,
    /// Options that were accepted and do nothing here, for the log.
    pub(crate) without_effect: Vec<&'static str>,
}

/// The first line names Firecracker's API in the words by which clients look for a version.
pub(crate) fn version() -> String {
    format!("Firecracker v{API_VERSION}\nbanger-qemu {} (Firecracker's API over QEMU)\n", env!("CARGO_PKG_VERSION"))
}

const HELP: &str = "
Options, as Firecracker's:
  --api-sock PATH          the API's Unix socket [/run/firecracker.socket]
  --config-file FILE       a VM's configuration in JSON; it boots at once
  --no-api                 no API socket; needs --config-file
  --id ID                  the VM's id [anonymous-instance]
  --log-path FILE, --level LEVEL, --show-level, --show-log-origin, --module NAME
  --metrics-path FILE
  --http-api-max-payload-size BYTES   [51200]
  --no-seccomp, --boot-timer, --start-time-us N, --start-time-cpu-us N, --parent-cpu-time-us N, --mmds-size-limit N
                           accepted, without effect: QEMU keeps its own sandbox
  --disk-layer ID=FILE     not Firecracker's: what the guest writes to the drive ID goes into a qcow2 file, and the
                           drive's own is only read
  --snapshot-version, --describe-snapshot FILE
                           the version of a snapshot's state file: of this program's, of a file
  --version, --help
Not supported: --seccomp-filter, --metadata, --enable-pci.
docs/banger-qemu.md lists what differs.
";

/// Reads the command line.
///
/// # Errors
/// One sentence for the user.
pub(crate) fn parse(words: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Asked, String> {
    let mut api_sock = None;
    let mut no_api = false;
    let mut seen: Vec<String> = Vec::new();
    let mut args = Args {
        api_sock: None,
        id: InstanceId::new(DEFAULT_ID).map_err(|error| error.to_string())?,
        config_file: None,
        log_path: None,
        level: None,
        show_level: None,
        metrics_path: None,
        max_body: DEFAULT_MAX_BODY,
        layer: None,
        without_effect: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(word) = parser.next().map_err(|error| error.to_string())? {
        let Long(name) = word else {
            return Err(format!("{}; --help lists the options.", word.unexpected()));
        };
        let name = name.to_owned();
        if seen.contains(&name) {
            return Err(format!("The argument '--{name}' was provided more than once."));
        }
        match name.as_str() {
            "version" => return Ok(Asked::Print(version())),
            "snapshot-version" => return Ok(Asked::Print(format!("v{}\n", snapshot::VERSION))),
            "describe-snapshot" => {
                let path = value(&mut parser)?;
                let version = snapshot::version_of(path.as_ref()).map_err(|error| format!("--{name}: {error}."))?;
                return Ok(Asked::Print(format!("v{version}\n")));
            }
            "help" => return Ok(Asked::Print(format!("{}{HELP}", version()))),
            "api-sock" => api_sock = Some(PathBuf::from(value(&mut parser)?)),
            "config-file" => args.config_file = Some(PathBuf::from(value(&mut parser)?)),
            "no-api" => no_api = true,
            "id" => args.id = checked(&name, &value(&mut parser)?, InstanceId::new)?,
            "log-path" => args.log_path = Some(checked(&name, &value(&mut parser)?, HostPath::new)?),
            "level" => args.level = Some(checked(&name, &value(&mut parser)?, |text| text.parse())?),
            "show-level" => args.show_level = Some(true),
            "metrics-path" => args.metrics_path = Some(checked(&name, &value(&mut parser)?, HostPath::new)?),
            "http-api-max-payload-size" => args.max_body = number(&name, &value(&mut parser)?)?,
            "disk-layer" => args.layer = Some(layer(&name, &value(&mut parser)?)?),
            "show-log-origin" => args.without_effect.push("--show-log-origin"),
            "no-seccomp" => args.without_effect.push("--no-seccomp"),
            "boot-timer" => args.without_effect.push("--boot-timer"),
            "module" => {
                value(&mut parser)?;
                args.without_effect.push("--module");
            }
            "mmds-size-limit" | "start-time-us" | "start-time-cpu-us" | "parent-cpu-time-us" => {
                number(&name, &value(&mut parser)?)?;
            }
            "seccomp-filter" | "metadata" | "enable-pci" => {
                return Err(format!("--{name} is not supported by banger-qemu."));
            }
            _ => return Err(format!("Found argument '{name}' which wasn't expected; --help lists the options.")),
        }
        seen.push(name);
    }
    if no_api && args.config_file.is_none() {
        return Err("Argument 'config-file' required, but not found: --no-api needs it.".to_owned());
    }
    args.api_sock = (!no_api).then(|| api_sock.unwrap_or_else(|| DEFAULT_API_SOCK.into()));
    Ok(Asked::Run(Box::new(args)))
}

fn layer(name: &str, text: &str) -> Result<Layer, String> {
    let (drive, path) = text.split_once('=').ok_or_else(|| format!("--{name}: {text:?} is not ID=FILE"))?;
    Ok(Layer { drive: checked(name, drive, ResourceId::new)?, path: checked(name, path, HostPath::new)? })
}

fn value(parser: &mut lexopt::Parser) -> Result<String, String> {
    let word = parser.value().map_err(|error| error.to_string())?;
    word.into_string().map_err(|_| "An argument's value is not UTF-8.".to_owned())
}

fn checked<T, E: std::fmt::Display>(
    name: &str,
    text: &str,
    check: impl FnOnce(String) -> Result<T, E>,
) -> Result<T, String> {
    check(text.to_owned()).map_err(|error| format!("--{name}: {error}."))
}

fn number(name: &str, text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("--{name}: not a number."))
}

#[cfg(test)]
mod tests {
    use super::{Args, Asked, parse};

    fn run(words: &[&str]) -> Result<Args, String> {
        match parse(words.iter().map(Into::into))? {
            Asked::Run(args) => Ok(*args),
            Asked::Print(text) => Err(text),
        }
    }

    #[test]
    fn firecrackers_jailed_command_line_is_accepted() {
        let words = ["--id", "vm-1", "--start-time-us", "5", "--start-time-cpu-us", "6", "--api-sock", "/a.sock"];
        let args = run(&words).expect("accepted");
        assert_eq!(args.api_sock.as_deref(), Some("/a.sock".as_ref()));
        assert_eq!(args.id.as_str(), "vm-1");
        let args = run(&["--disk-layer", "root_fs=/etc/layer=1"]).expect("accepted");
        let layer = args.layer.expect("a layer");
        assert_eq!((layer.drive.as_str(), layer.path.as_str()), ("root_fs", "/etc/layer=1"));
        let args = run(&["--config-file=/c", "--no-api", "--level", "warning"]).expect("accepted");
        assert_eq!(args.api_sock, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, said) in [
            (&["--no-api"][..], "config-file"),
            (&["--id", "a_b"], "--id"),
            (&["--id"], "id"),
            (&["--id", "a", "--id", "b"], "more than once"),
            (&["--append", "x"], "append"),
            (&["--disk-layer", "x"], "is not ID=FILE"),
            (&["--disk-layer", "a.b=/x"], "--disk-layer"),
            (&["vm"], "vm"),
            (&["-x"], "-x"),
            (&["--seccomp-filter", "/f"], "not supported"),
            (&["--http-api-max-payload-size", "-1"], "not a number"),
            (&["--level", "loud"], "--level"),
            (&["--describe-snapshot", "/etc/passwd"], "no snapshot"),
            (&["--snapshot-version"], "v1.0.0"),
        ] {
            let error = run(words).expect_err("refused");
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_version_begins_as_firecrackers() {
        let first = super::version();
        assert!(first.starts_with("Firecracker v1.") && first.contains("banger-qemu"), "{first}");
    }
}
