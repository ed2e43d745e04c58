//! The configuration file: its keys, their values, and where each is from.
//!
//! `$XDG_CONFIG_HOME/banger/config.toml` goes over `/etc/banger/config.toml`; a flag and the environment go over both. An
//! empty text means what is built in. `banger` reads the files at each call, `bangerd` at its start.

mod files;

pub use files::SyncedFile;

use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::image::check_name;
use crate::daemon::store::assets::Kind;
use crate::daemon::vm::disk::Method;
use crate::daemon::vmm::Accel;
use crate::{duration, image::debian, near, size};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};
use wire::name::link::BridgeName;
use wire::path::ProgramPath;
use wire::vm::MAX_VCPUS;

/// The machine's file; the administrator writes it.
pub const FILE: &str = "/etc/banger/config.toml";
/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What was configured; `None`: nothing was, and the built-in value holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The image of a VM that names none.
    pub default_image_name: Option<String>,
    /// vCPUs of a VM that names none.
    pub vcpu: Option<u8>,
    /// Memory of a VM that names none, in MiB.
    pub memory_mib: Option<u64>,
    /// The disk of a VM that names none, in MiB.
    pub disk_mib: Option<u64>,
    /// Whether a VM has a way out to the network.
    pub nat: Option<bool>,
    /// How long an agent may take to answer.
    pub boot_timeout: Option<Duration>,
    /// After that time a VM that is to stop is killed.
    pub stop_timeout: Option<Duration>,
    /// The way that `vm ssh` goes: `auto`, `network` or `agent`.
    pub ssh_via: Option<String>,
    /// How stages are told: `auto`, `plain`, `json` or `none`.
    pub progress: Option<String>,
    /// The bridge's name.
    pub bridge_name: Option<BridgeName>,
    /// The bridge's address.
    pub bridge_ip: Option<Ipv4Addr>,
    /// The length of its prefix.
    pub cidr: Option<u8>,
    /// Taps that are kept ready.
    pub tap_pool_size: Option<u8>,
    /// Copies of an image that are kept ready.
    pub disk_pool_size: Option<u8>,
    /// Whether templates are made unasked: `auto` or `off`.
    pub templates: Option<String>,
    /// The most templates.
    pub template_count: Option<u16>,
    /// What they may take on the disk together, in MiB.
    pub template_mib: Option<u64>,
    /// VMs that are kept ready, paused.
    pub warm_pool: Option<u8>,
    /// The resolver that guests are told.
    pub default_dns: Option<Ipv4Addr>,
    /// What is logged: `debug`, `info`, `warn` or `error`, and what is worse.
    pub log_level: Option<String>,
    /// How guests are run.
    pub accel: Option<Accel>,
    /// How a VM's disk is made of its image.
    pub disk_method: Option<Method>,
    /// Firecracker's program.
    pub firecracker_bin: Option<String>,
    /// The jailer's program.
    pub jailer_bin: Option<PathBuf>,
    /// The directory of jails.
    pub jailer_chroot_base: Option<PathBuf>,
    /// The private half of the owner's ssh key.
    pub ssh_key_path: Option<PathBuf>,
    /// A VM that nothing has used for so long is stopped.
    pub auto_stop_stale_after: Option<Duration>,
    /// How often VMs are looked at.
    pub stats_poll_interval: Option<Duration>,
    /// Files that every VM gets.
    pub file_sync: Vec<SyncedFile>,
    /// Where each value is from, by its key.
    pub set: BTreeMap<&'static str, Set>,
    /// Values that have no effect, and why, a line each.
    pub without_effect: Vec<String>,
    /// Keys that nobody knows, a line each.
    pub warnings: Vec<String>,
}

/// A value in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// A text, a number or a truth value; of `file_sync` an array of objects.
    pub value: Value,
    /// The file and the line.
    pub place: Place,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A key that something reads.
pub struct Key {
    /// Its name, with its table's before a dot.
    pub name: &'static str,
    /// The value where none is set; empty: it is worked out.
    pub usual: &'static str,
    /// The variable of the environment that goes over the files.
    pub env: Option<&'static str>,
    /// What it is for.
    pub about: &'static str,
    /// What it may be.
    pub allowed: &'static str,
    /// Keeps a value; `None` where it is not allowed.
    keep: fn(&mut Config, &Value) -> Option<()>,
}

macro_rules! keys {
    ($($name:literal = $usual:literal, $env:expr, $about:literal, $allowed:literal: |$config:ident, $value:ident| $keep:expr;)*) => {
        /// Every key that something reads: those of `banger`, then `bangerd`'s.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            usual: $usual,
            env: $env,
            about: $about,
            allowed: $allowed,
            keep: |$config, $value| {
                $keep;
                Some(())
            },
        }),*];
    };
}

keys! {
    "vm_defaults.vcpu" = "", None, "vCPUs of a new VM; 0: a quarter of the machine's, 1 under emulation", "0 to 32":
        |config, value| config.vcpu = number(value, 0, MAX_VCPUS.into()).map(Some)?.filter(|n| *n != 0);
    "vm_defaults.memory_mib" = "", None, "memory of a new VM; 0: an eighth of the machine's", "0, or 64 and more, in MiB":
        |config, value| config.memory_mib = match number(value, 0, 1 << 30)? { 0 => None, 1..64 => return None, mib => Some(mib) };
    "vm_defaults.disk_size" = "", None, "the disk of a new VM; built in: as long as its image's", "8G, 512M":
        |config, value| config.disk_mib = Some(size::mebibytes(value.as_str()?).ok()?);
    "vm_defaults.system_overlay_size" = "", None, "nothing: a VM has one disk", "8G, 512M":
        |_config, value| size::mebibytes(value.as_str()?).ok()?;
    "nat" = "true", None, "whether new VMs have a way out to the network", "true or false":
        |config, value| config.nat = Some(value.as_bool()?);
    "boot_timeout" = "", None, "how long an agent may take to answer; built in: 60s, 3m under emulation", "90s, 1h30m, or seconds":
        |config, value| config.boot_timeout = Some(time(value)?);
    "stop_timeout" = "", None, "after this time a VM that is to stop is killed; built in: 10s, with --init 30s, 1m under emulation", "90s, 1h30m, or seconds":
        |config, value| config.stop_timeout = Some(time(value)?);
    "ssh_via" = "auto", None, "the way that vm ssh goes", "auto, network or agent":
        |config, value| config.ssh_via = Some(one_of(value, &["auto", "network", "agent"])?);
    "progress" = "auto", Some("BANGER_PROGRESS"), "how stages are told", "auto, plain, json or none":
        |config, value| config.progress = Some(one_of(value, &["auto", "plain", "json", "none"])?);
    "default_image_name" = "", Some("BANGER_IMAGE"), "the image of a new VM; built in: this machine's Debian", "an image's name":
        |config, value| config.default_image_name = Some(image(value)?);
    "bridge_name" = "br-fc", None, "the bridge that VMs are on", "a network interface's name":
        |config, value| config.bridge_name = Some(BridgeName::new(value.as_str()?).ok()?);
    "bridge_ip" = "172.16.0.1", None, "its address", "a private IPv4 address, such as 172.16.0.1":
        |config, value| config.bridge_ip = Some(value.as_str()?.parse().ok()?);
    "cidr" = "24", None, "the length of its prefix", "8 to 30":
        |config, value| config.cidr = Some(number(value, 8, 30)?);
    "tap_pool_size" = "4", None, "how many taps are kept ready", "0 to 64":
        |config, value| config.tap_pool_size = Some(number(value, 0, 64)?);
    "disk_pool_size" = "2", None, "how many copies of the last image are kept ready, where disks are copies", "0 to 16":
        |config, value| config.disk_pool_size = Some(number(value, 0, 16)?);
    "templates" = "auto", None, "whether the first vm run of an image leaves a template behind, from which the next ones go on", "auto or off":
        |config, value| config.templates = Some(one_of(value, &["auto", "off"])?);
    "template_count" = "8", None, "the most templates; the one that was not used for longest goes", "1 to 1000":
        |config, value| config.template_count = Some(number(value, 1, 1000)?);
    "template_size" = "4G", None, "what templates may take on the disk together", "4G, 512M":
        |config, value| config.template_mib = Some(size::mebibytes(value.as_str()?).ok()?);
    "warm_pool" = "0", None, "how many VMs of the usual kind are kept ready, paused, where there is a template", "0 to 64":
        |config, value| config.warm_pool = Some(number(value, 0, 64)?);
    "default_dns" = "", None, "the resolver that guests are told; built in: this machine's", "an IPv4 address":
        |config, value| config.default_dns = Some(value.as_str()?.parse().ok()?);
    "accel" = "auto", None, "how guests are run: by KVM where that runs them, else emulated", "auto, kvm or emulation":
        |config, value| config.accel = match one_of(value, &["auto", "kvm", "emulation"])?.as_str() {
            "kvm" => Some(Accel::Kvm),
            "emulation" => Some(Accel::Emulation),
            _ => None,
        };
    "disk_method" = "auto", None, "how a VM's disk is made of its image; auto: the first of them that works here", "auto, dm-snapshot, reflink or copy":
        |config, value| config.disk_method = match one_of(value, &["auto", "dm-snapshot", "reflink", "copy", "overlay"])?.as_str() {
            "dm-snapshot" => Some(Method::Snapshot),
            "reflink" => Some(Method::Reflink),
            "copy" => Some(Method::Copy),
            _ => None,
        };
    "firecracker_bin" = "", None, "Firecracker's program; built in: firecracker in the root helper's program_dirs", "an absolute path in one of the root helper's program_dirs":
        |config, value| config.firecracker_bin = Some(ProgramPath::new(value.as_str()?).ok()?.as_str().to_owned());
    "jailer_bin" = "", None, "the jailer's program; built in, and where that is not there: banger-jailer beside the VMM", "an absolute path in one of the root helper's program_dirs":
        |config, value| config.jailer_bin = Some(ProgramPath::new(value.as_str()?).ok()?.as_str().into());
    "jailer_enabled" = "true", None, "whether VMMs run in jails: they do", "true":
        |_config, value| value.as_bool()?;
    "jailer_chroot_base" = "", None, "the directory of jails; built in: jail in the state directory", "an absolute path below bangerd's state directory":
        |config, value| config.jailer_chroot_base = Some(files::absolute(value.as_str()?)?);
    "ssh_key_path" = "", None, "the private half of the ssh key that VMs let in; built in: one that bangerd makes", "an absolute path, or ~/FILE; FILE.pub beside it, or a key without a passphrase":
        |config, value| config.ssh_key_path = Some(files::path(value.as_str()?)?);
    "auto_stop_stale_after" = "0", None, "a VM that stays and that nothing has used for so long is stopped; 0: none is", "0 for never, or 1m and more: 12h, 7d, or seconds":
        |config, value| config.auto_stop_stale_after = age(value)?;
    "stats_poll_interval" = "10s", None, "how often VMs are looked at, whether something has used them", "1s to 1h":
        |config, value| config.stats_poll_interval = Some(time(value).filter(|time| (1..=3600).contains(&time.as_secs()))?);
    "file_sync" = "", None, "files of this machine that every VM gets when it starts", "[[file_sync]] with host = \"~/FILE\", guest = \"~/FILE\" and mode = \"0600\"; host below the home here, guest below /root":
        |config, value| config.file_sync = files::list(value)?;
    "log_level" = "info", Some("BANGER_LOG_LEVEL"), "what bangerd logs, and what is worse", "debug, info, warn or error":
        |config, value| config.log_level = Some(one_of(value, &["debug", "info", "warn", "error"])?);
}

/// Values that are taken and have no effect: of which key, which of them, and why.
struct WithoutEffect {
    key: &'static str,
    is_so: fn(&Value) -> bool,
    why: &'static str,
}

const WITHOUT_EFFECT: [WithoutEffect; 3] = [
    WithoutEffect {
        key: "jailer_enabled",
        is_so: |value| value == &Value::Bool(false),
        why: "no VM runs without a jail, which holds all that its VMM can reach",
    },
    WithoutEffect {
        key: "disk_method",
        is_so: |value| value == "overlay",
        why: "the agent lays no file system over another; the method is chosen as by auto",
    },
    WithoutEffect {
        key: "vm_defaults.system_overlay_size",
        is_so: |_| true,
        why: "a VM has one disk, as long as vm_defaults.disk_size says",
    },
];

fn number<T: TryFrom<u64>>(value: &Value, least: u64, most: u64) -> Option<T> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    T::try_from(number).ok().filter(|_| (least..=most).contains(&number))
}

fn time(value: &Value) -> Option<Duration> {
    match value {
        Value::String(text) => duration::parse(text).ok(),
        number => duration::parse(&number.as_u64()?.to_string()).ok(),
    }
}

/// A time that may be days, and none: 0. What is shorter than a minute would be over before anybody used what he made.
fn age(value: &Value) -> Option<Option<Duration>> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if ["0", "0ms", "0s", "0m", "0h", "0d"].contains(&text.as_str()) {
        return Some(None);
    }
    duration::age(&text).ok().filter(|age| age.as_secs() >= 60).map(Some)
}

fn one_of(value: &Value, known: &[&str]) -> Option<String> {
    known.iter().find(|known| value.as_str() == Some(known)).map(|&known| known.to_owned())
}

/// An image's name; a Debian release may be called by its code name, as the Go tool has it.
fn image(value: &Value) -> Option<String> {
    let name = value.as_str()?;
    let number = name.strip_prefix("debian-").and_then(|code| debian::RELEASES.iter().find(|(_, of)| *of == code));
    let name = number.map_or(name.to_owned(), |(number, _)| format!("debian-{number}"));
    check_name(Kind::Image, &name).ok().map(|()| name)
}

impl Config {
    /// Reads the files: `BANGER_CONFIG` alone where it is set, else the user's over the machine's. One that is not there
    /// is empty; a user's file that belongs to somebody else, as after `sudo`, is left alone.
    ///
    /// # Errors
    /// `bad_config`, exit status 2: a file that can't be read, that is no TOML, or that has a value which its key can't
    /// have. It says where, and what is allowed.
    pub fn load() -> Result<Config, Fault> {
        if let Some(file) = variable("BANGER_CONFIG") {
            return Config::of(&[(PathBuf::from(&file), read(Path::new(&file))?)]);
        }
        let mut files = Vec::new();
        for (path, is_users) in [(Some(PathBuf::from(FILE)), false), (users(), true)] {
            let Some(path) = path else { continue };
            let me = rustix::process::geteuid().as_raw();
            match std::fs::metadata(&path) {
                Ok(facts) if is_users && facts.uid() != me => {}
                Ok(_) => files.push((path.clone(), read(&path)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound || is_users => {}
                Err(error) => return Err(Fault::file("reading", &path, &error)),
            }
        }
        Config::of(&files)
    }

    /// What these files say together, the last over those before.
    fn of(files: &[(PathBuf, String)]) -> Result<Config, Fault> {
        let mut config = Config::default();
        for (file, text) in files {
            config.take(file, text)?;
        }
        for (name, Set { value, place }) in config.set.clone() {
            let key = KEYS.iter().find(|key| key.name == name);
            if let Some(key) = key.filter(|key| (key.keep)(&mut config, &value).is_none()) {
                return Err(refused(key, &value.to_string(), &place));
            }
            config.note_without_effect(name, &value, &place);
        }
        Ok(config)
    }

    fn take(&mut self, file: &Path, text: &str) -> Result<(), Fault> {
        let place = |at: usize| Place {
            file: file.to_owned(),
            line: text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1,
        };
        let table = DeTable::parse(text).map_err(|error| {
            let at = place(error.span().map_or(0, |span| span.start));
            Fault::new("bad_config", exit::USAGE, format!("{at}: this is no TOML")).why(error.message())
        })?;
        for (key, value) in table.get_ref() {
            let (name, at) = (key.get_ref().as_ref(), place(key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) if name == "vm_defaults" => {
                    for (key, value) in inner {
                        let at = place(key.span().start);
                        self.put(&format!("{name}.{}", key.get_ref()), value.get_ref(), at)?;
                    }
                }
                value => self.put(name, value, at)?,
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, value: &DeValue<'_>, place: Place) -> Result<(), Fault> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            self.stray(name, &place);
            return Ok(());
        };
        let value = match value {
            DeValue::String(text) if text.is_empty() => {
                self.set.remove(key.name);
                return Ok(());
            }
            DeValue::String(text) => Value::from(text.as_ref()),
            DeValue::Boolean(truth) => Value::from(*truth),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Value::from)
                .map_err(|_| refused(key, number.as_str(), &place))?,
            DeValue::Array(entries) if key.name == "file_sync" => {
                let entries = entries.iter().map(|entry| files::object(entry.get_ref()));
                entries.collect::<Option<_>>().ok_or_else(|| refused(key, "a value of that form", &place))?
            }
            _ => return Err(refused(key, "a value of that type", &place)),
        };
        self.set.insert(key.name, Set { value, place });
        Ok(())
    }

    fn note_without_effect(&mut self, name: &str, value: &Value, place: &Place) {
        let found = WITHOUT_EFFECT.iter().find(|one| one.key == name && (one.is_so)(value));
        if let Some(WithoutEffect { key, why, .. }) = found {
            self.without_effect.push(format!("{place}: {key} = {value} has no effect: {why}"));
        }
    }

    fn stray(&mut self, name: &str, place: &Place) {
        let shown = wire::code::shown(name);
        let near = near::nearest(name, KEYS.iter().map(|key| key.name));
        let close = near.map_or("banger config show lists them".to_owned(), |near| format!("{near} is close"));
        self.warnings.push(format!("{place}: there is no key {shown}; {close}"));
    }
}

fn refused(key: &Key, value: &str, place: &Place) -> Fault {
    let what = format!("{place}: {} can't be {value}", key.name);
    Fault::new("bad_config", exit::USAGE, what).fix(format!("{}: {}", key.name, key.allowed))
}

fn read(path: &Path) -> Result<String, Fault> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 <= MAX_FILE => Ok(text),
        Ok(_) => Err(Fault::new("bad_config", exit::USAGE, format!("{} is longer than 1M", path.display()))),
        Err(error) => {
            let what = format!("{} can't be read", path.display());
            Err(Fault::new("bad_config", exit::USAGE, what).why(error))
        }
    }
}

/// The user's file, where it may be; only absolute places count (XDG Base Directory Specification).
fn users() -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("banger/config.toml"))
}

/// A variable of the environment; an empty one counts as none.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Config, Fault> {
        Config::of(&[("/c".into(), text.to_owned())])
    }

    #[test]
    fn the_users_file_goes_over_the_machines() {
        let files = [
            ("/etc/c".into(), "nat = false\nstop_timeout = 90\n[vm_defaults]\nvcpu = 2\nmemory_mib = 0\n".to_owned()),
            ("/home/c".into(), "stop_timeout = \"2m\"\ndefault_image_name = \"debian-bookworm\"\n".to_owned()),
        ];
        let config = Config::of(&files).unwrap();
        assert_eq!((config.nat, config.vcpu, config.memory_mib), (Some(false), Some(2), None));
        assert_eq!(config.stop_timeout, Some(Duration::from_secs(120)));
        assert_eq!(config.default_image_name.as_deref(), Some("debian-12"));
        assert_eq!(config.set["vm_defaults.vcpu"].place.to_string(), "/etc/c:4");
        let files = [files[0].clone(), ("/home/c".into(), "stop_timeout = \"\"".to_owned())];
        assert_eq!(Config::of(&files).unwrap().stop_timeout, None, "an empty text is the built-in value");
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        for (text, told) in [
            ("\nnat = 1\n", "/c:2: nat can't be 1"),
            ("cidr = \"31\"", "/c:1: cidr can't be \"31\""),
            ("tap_pool_size = -1", "/c:1: tap_pool_size can't be -1"),
            ("tap_pool_size = 99999999999999999999", "/c:1: tap_pool_size can't be 99999999999999999999"),
            ("[vm_defaults]\n\nmemory_mib = 3", "/c:3: vm_defaults.memory_mib can't be 3"),
            ("boot_timeout = \"soon\"", "/c:1: boot_timeout can't be \"soon\""),
            ("bridge_name = \"a b\"", "/c:1: bridge_name can't be \"a b\""),
            ("bridge_ip = [1]", "/c:1: bridge_ip can't be a value of that type"),
            ("default_image_name = \"A/b\"", "/c:1: default_image_name can't be \"A/b\""),
            ("nat = true\nnat =\n", "/c:2: this is no TOML"),
        ] {
            let fault = of(text).unwrap_err();
            assert_eq!((&*fault.message, fault.code.as_str(), fault.exit), (told, "bad_config", 2));
            assert!(!fault.fix.is_empty() || fault.why.is_some());
        }
    }

    #[test]
    fn every_key_takes_its_usual_value() {
        for key in KEYS.iter().filter(|key| !key.usual.is_empty()) {
            let value = serde_json::from_str(key.usual).unwrap_or(Value::from(key.usual));
            assert!((key.keep)(&mut Config::default(), &value).is_some(), "{}", key.name);
        }
    }

    #[test]
    fn nothing_is_stale_at_once() {
        for (text, seconds) in
            [("\"0\"", 0), ("0", 0), ("\"0d\"", 0), ("\"0s\"", 0), ("60", 60), ("\"1m\"", 60), ("\"7d\"", 604_800)]
        {
            let config = of(&format!("auto_stop_stale_after = {text}")).unwrap();
            let after = (seconds > 0).then(|| Duration::from_secs(seconds));
            assert_eq!(config.auto_stop_stale_after, after, "{text}");
        }
        for text in ["\"1ms\"", "59", "\"59s\"", "\"00d\"", "-1"] {
            let fault = of(&format!("auto_stop_stale_after = {text}")).unwrap_err();
            assert!(fault.fix[0].contains("1m and more"), "{text}: {fault:?}");
        }
    }

    #[test]
    fn the_go_tools_file_works() {
        let config = of(
            "log_level = \"info\"\nfirecracker_bin = \"\"\njailer_bin = \"/usr/bin/jailer\"\njailer_enabled = true\n\
             jailer_chroot_base = \"\"\nssh_key_path = \"/k\"\nauto_stop_stale_after = \"0\"\nstats_poll_interval = \"10s\"\n\
             bridge_nam = \"x\"\nzzz = 1\n[vm_defaults]\nsystem_overlay_size = \"\"\n",
        );
        let config = config.unwrap();
        assert!(config.without_effect.is_empty(), "{:?}", config.without_effect);
        assert_eq!((config.auto_stop_stale_after, config.ssh_key_path), (None, Some("/k".into())));
        let lines: Vec<&str> = config.warnings.iter().map(String::as_str).collect();
        assert_eq!(lines[0], "/c:9: there is no key \"bridge_nam\"; bridge_name is close");
        assert!(lines[1].starts_with("/c:10: there is no key \"zzz\"; banger config show"), "{lines:?}");
    }

    #[test]
    fn what_has_no_effect_is_told_with_its_place_and_why() {
        let text = "\njailer_enabled = false\ndisk_method = \"overlay\"\n[vm_defaults]\nsystem_overlay_size = \"8G\"\n";
        let told = of(text).unwrap().without_effect;
        assert_eq!(told.len(), WITHOUT_EFFECT.len());
        assert!(
            told.contains(
                &"/c:3: disk_method = \"overlay\" has no effect: the agent lays no file system over \
            another; the method is chosen as by auto"
                    .to_owned()
            ),
            "{told:?}"
        );
        assert!(told.iter().any(|line| line.starts_with("/c:2: jailer_enabled = false has no effect: no VM runs")));
    }
}
