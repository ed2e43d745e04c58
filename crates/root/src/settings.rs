//! What an administrator can set: directories, programs, limits. `/etc/banger/root.toml` and the command line.

use crate::log::Level;
use crate::trusted;
use serde::Deserialize;
use std::time::Duration;
use wire::path::Roots;

const MIB: usize = 1 << 20;

/// The settings, whole.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where the socket is, unless one is passed.
    pub(crate) socket: String,
    /// State and runtime directory, as text for `wire`.
    pub(crate) roots: Roots,
    /// Root's own directory for what a boot ends: `/run/banger-root`.
    pub(crate) run_dir: String,
    /// Root's own directory for what a boot does not end: `/var/lib/banger-root`.
    pub(crate) lib_dir: String,
    /// The install metadata.
    pub(crate) install_meta: String,
    /// Where programs are looked for by name, in that order.
    pub(crate) program_dirs: Vec<String>,
    /// What a VMM's program may be called.
    pub(crate) vmm_names: Vec<String>,
    /// What a jailer's program may be called.
    pub(crate) jailer_names: Vec<String>,
    /// Our tables are the helper's alone, where the kernel has that.
    pub(crate) own_tables: bool,
    /// The user that workers for images run as. `None`: one that no account and no other worker has.
    pub(crate) worker_uid: Option<u32>,
    /// Lines below it are not logged.
    pub(crate) log_level: Level,
    /// A fault that a test asks for, as `steps` reads it.
    pub(crate) fault: String,
    /// Guests of one bridge don't see each other.
    pub(crate) isolate_guests: bool,
    /// A worker waits for the next request about an image, for a minute.
    pub(crate) waiting_worker: bool,
    /// Each VMM is the first process of a PID namespace of its own.
    pub(crate) vm_pid_namespace: bool,
    /// What guests' packets are marked with.
    pub(crate) mark: Mark,
    /// The limits.
    pub(crate) limits: Limits,
}

/// The mark of packets that our rules have let through: `value` in the bits of `mask`; other bits are others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) value: u32,
    pub(crate) mask: u32,
}

impl Mark {
    /// The top byte: Tailscale has 0xff0000, kube-proxy 0xc000.
    const DEFAULT: Mark = Mark { value: 0x6200_0000, mask: 0xff00_0000 };

    /// A mark of no bits would be every packet's.
    fn new(value: u32, mask: u32) -> Result<Mark, String> {
        match value {
            0 => Err("mark is 0, which is every packet's".to_owned()),
            _ if value & !mask != 0 => Err(format!("mark {value:#010x} has bits outside mark_mask {mask:#010x}")),
            _ => Ok(Mark { value, mask }),
        }
    }
}

/// As iptables takes it: `0x62000000/0xff000000`.
impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}/{:#010x}", self.value, self.mask)
    }
}

/// Bounds. Each is named in the error that says that it was reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Connections at once; root has one more.
    pub(crate) connections: usize,
    /// Operations at once; root has one more.
    pub(crate) workers: usize,
    /// Requests that wait for a worker.
    pub(crate) queued: usize,
    /// Bytes of a request.
    pub(crate) request_bytes: usize,
    /// Bytes of all requests that are being received or worked on.
    pub(crate) request_bytes_together: usize,
    /// Seconds from the connection to the request's last byte.
    request_seconds: u32,
    /// Bytes of a reply.
    pub(crate) reply_bytes: usize,
    /// Bytes of all replies that wait for their reader.
    pub(crate) reply_bytes_together: usize,
    /// Seconds until a reply must have been read.
    reply_seconds: u32,
    /// Seconds that running operations get when the helper is to stop.
    stop_seconds: u32,
    /// Seconds that a VM may take to run.
    launch_seconds: u32,
    /// Log lines a second that requests can cause; bytes that are no request cause a tenth of it.
    pub(crate) log_lines_per_second: u32,
    /// Bridges.
    pub(crate) bridges: usize,
    /// Taps.
    pub(crate) taps: usize,
    /// Guests with a way out.
    pub(crate) guests: usize,
    /// VMs.
    pub(crate) vms: usize,
    /// Processes and threads of one VM.
    pub(crate) vm_processes: usize,
    /// Mebibytes that are kept of one VM's output, its console with it.
    vm_log_mebibytes: usize,
    /// Memories of saved VMs that are held for restores.
    pub(crate) memories: usize,
    /// Mebibytes of all of them together.
    memory_mebibytes: usize,
    /// Seconds that one is held without a VM that uses it.
    memory_seconds: u32,
    /// Snapshots. Each takes a loop device, and each image that has some another one.
    pub(crate) snapshots: usize,
    /// Images that are read or written at once.
    pub(crate) image_workers: usize,
    /// Seconds that a read or a write of files in an image may take, and that it may wait for others.
    image_seconds: u32,
    /// Seconds that the check of a snapshot's file system may take.
    fsck_seconds: u32,
    /// Mebibytes of memory of a process that works on an image.
    image_mebibytes: usize,
    /// Writes of images that were cut off and can't be finished.
    pub(crate) image_logs: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            workers: 32,
            queued: 512,
            request_bytes: 32 * MIB,
            request_bytes_together: 128 * MIB,
            request_seconds: 10,
            reply_bytes: 96 * MIB,
            reply_bytes_together: 256 * MIB,
            reply_seconds: 30,
            stop_seconds: 60,
            launch_seconds: 30,
            log_lines_per_second: 1000,
            bridges: 16,
            taps: 1024,
            guests: 1024,
            vms: 256,
            vm_processes: 1024,
            vm_log_mebibytes: 64,
            memories: 16,
            memory_mebibytes: 4096,
            memory_seconds: 600,
            snapshots: 512,
            image_workers: 4,
            image_seconds: 60,
            fsck_seconds: 600,
            image_mebibytes: 1024,
            image_logs: 16,
        }
    }
}

impl Limits {
    /// From the connection to the request's last byte.
    pub(crate) fn request_time(&self) -> Duration {
        Duration::from_secs(self.request_seconds.into())
    }

    /// Until a reply must have been read.
    pub(crate) fn reply_time(&self) -> Duration {
        Duration::from_secs(self.reply_seconds.into())
    }

    /// For running operations when the helper is to stop.
    pub(crate) fn stop_time(&self) -> Duration {
        Duration::from_secs(self.stop_seconds.into())
    }

    /// For a VM to run.
    pub(crate) fn launch_time(&self) -> Duration {
        Duration::from_secs(self.launch_seconds.into())
    }

    /// Bytes that are kept of one VM's output.
    pub(crate) fn vm_log_bytes(&self) -> u64 {
        (self.vm_log_mebibytes * MIB) as u64
    }

    /// Bytes of all memories of saved VMs.
    pub(crate) fn memory_bytes(&self) -> u64 {
        (self.memory_mebibytes * MIB) as u64
    }

    /// For a saved VM's memory that no VM uses.
    pub(crate) fn memory_time(&self) -> Duration {
        Duration::from_secs(self.memory_seconds.into())
    }

    /// For a read or a write of files in an image.
    pub(crate) fn image_time(&self) -> Duration {
        Duration::from_secs(self.image_seconds.into())
    }

    /// For a check of a snapshot's file system.
    pub(crate) fn fsck_time(&self) -> Duration {
        Duration::from_secs(self.fsck_seconds.into())
    }

    /// Bytes of memory of a process that works on an image.
    pub(crate) fn image_bytes(&self) -> u64 {
        (self.image_mebibytes * MIB) as u64
    }

    /// Every number with its name and the least and the most that it may be.
    fn bounds(&self) -> [(&'static str, usize, usize, usize); 27] {
        let most = 1 << 20;
        [
            ("connections", self.connections, 1, 65_536),
            ("workers", self.workers, 1, 256),
            ("queued", self.queued, 0, 65_536),
            ("request_bytes", self.request_bytes, 4096, 1 << 30),
            ("request_bytes_together", self.request_bytes_together, 4096, 1 << 32),
            ("request_seconds", self.request_seconds as usize, 1, 3600),
            ("reply_bytes", self.reply_bytes, 4096, 1 << 30),
            ("reply_bytes_together", self.reply_bytes_together, 4096, 1 << 32),
            ("reply_seconds", self.reply_seconds as usize, 1, 3600),
            ("stop_seconds", self.stop_seconds as usize, 1, 3600),
            ("launch_seconds", self.launch_seconds as usize, 1, 3600),
            ("log_lines_per_second", self.log_lines_per_second as usize, 1, most),
            ("bridges", self.bridges, 1, most),
            ("taps", self.taps, 1, most),
            ("guests", self.guests, 1, most),
            ("vms", self.vms, 1, most),
            ("vm_processes", self.vm_processes, 16, most),
            ("vm_log_mebibytes", self.vm_log_mebibytes, 1, 1 << 20),
            ("memories", self.memories, 1, 65_536),
            ("memory_mebibytes", self.memory_mebibytes, 1, 1 << 24),
            ("memory_seconds", self.memory_seconds as usize, 1, 86_400),
            ("snapshots", self.snapshots, 1, most),
            ("image_workers", self.image_workers, 1, 256),
            ("image_seconds", self.image_seconds as usize, 1, 3600),
            ("fsck_seconds", self.fsck_seconds as usize, 1, 86_400),
            ("image_mebibytes", self.image_mebibytes, 256, most),
            ("image_logs", self.image_logs, 1, most),
        ]
    }
}

/// What the file may say. Its keys are the settings' names.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    run_dir: Option<String>,
    lib_dir: Option<String>,
    program_dirs: Option<Vec<String>>,
    /// More names that a VMM's program may have.
    vmm_names: Vec<String>,
    /// More names that a jailer's program may have.
    jailer_names: Vec<String>,
    /// Our tables are the helper's alone, where the kernel has that.
    own_tables: Option<bool>,
    worker_uid: Option<u32>,
    log_level: Option<String>,
    fault: String,
    isolate_guests: bool,
    waiting_worker: bool,
    vm_pid_namespace: bool,
    mark: Option<u32>,
    mark_mask: Option<u32>,
    limits: Limits,
}

/// What the command line may say; `None` where it does not.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    /// `--socket`
    pub(crate) socket: Option<String>,
    /// `--state-dir`
    pub(crate) state_dir: Option<String>,
    /// `--runtime-dir`
    pub(crate) runtime_dir: Option<String>,
    /// `--install-meta`
    pub(crate) install_meta: Option<String>,
    /// `--config`
    pub(crate) config: Option<String>,
    /// `--log-level`
    pub(crate) log_level: Option<Level>,
}

/// The configuration file where the command line names none; it may be missing.
const CONFIG: &str = "/etc/banger/root.toml";

impl Settings {
    /// Reads the configuration file, and lets the command line have its way over it.
    pub(crate) fn read(flags: Flags) -> Result<Settings, String> {
        let named = flags.config.is_some();
        let path = absolute("--config", flags.config.clone(), CONFIG)?;
        let file = match trusted::read(&path)? {
            Some(text) => parse(&path, &text)?,
            None if named => return Err(format!("{path}: there is no such file")),
            None => File::default(),
        };
        Settings::of(&path, file, flags)
    }

    fn of(path: &str, file: File, flags: Flags) -> Result<Settings, String> {
        let level = file.log_level.as_deref().map(|text| {
            Level::parse(text).ok_or_else(|| format!("{path}: log_level is none of debug, info, warn, error"))
        });
        let in_file = |key: &str| format!("{path}: {key}");
        let dirs = file
            .program_dirs
            .unwrap_or_else(|| ["/usr/local/bin", "/usr/bin", "/usr/libexec/banger"].map(String::from).to_vec());
        let program_dirs = dirs.into_iter().map(|dir| absolute(&in_file("program_dirs"), Some(dir), ""));
        Ok(Settings {
            socket: absolute("--socket", flags.socket, "/run/banger-root/bangerd-root.sock")?,
            roots: Roots {
                state: absolute("--state-dir", flags.state_dir, "/var/lib/banger")?,
                runtime: absolute("--runtime-dir", flags.runtime_dir, "/run/banger")?,
            },
            run_dir: absolute(&in_file("run_dir"), file.run_dir, RUN_DIR)?,
            lib_dir: absolute(&in_file("lib_dir"), file.lib_dir, "/var/lib/banger-root")?,
            install_meta: absolute("--install-meta", flags.install_meta, "/etc/banger/install.toml")?,
            program_dirs: program_dirs.collect::<Result<_, _>>()?,
            vmm_names: names(&in_file("vmm_names"), &["firecracker", "banger-qemu"], file.vmm_names)?,
            jailer_names: names(&in_file("jailer_names"), &["jailer", "banger-jailer"], file.jailer_names)?,
            own_tables: file.own_tables.unwrap_or(true),
            worker_uid: worker(&in_file("worker_uid"), file.worker_uid)?,
            log_level: flags.log_level.or(level.transpose()?).unwrap_or(Level::Info),
            fault: file.fault,
            isolate_guests: file.isolate_guests,
            waiting_worker: file.waiting_worker,
            vm_pid_namespace: file.vm_pid_namespace,
            mark: Mark::new(file.mark.unwrap_or(Mark::DEFAULT.value), file.mark_mask.unwrap_or(Mark::DEFAULT.mask))
                .map_err(|mistake| in_file(&mistake))?,
            limits: file.limits,
        })
    }
}

#[cfg(test)]
impl Settings {
    /// Without a file and a command line.
    pub(crate) fn default() -> Settings {
        Settings::of("", File::default(), Flags::default()).expect("the defaults")
    }
}

/// Root's own directory, the only one whose mode the helper sets.
pub(crate) const RUN_DIR: &str = "/run/banger-root";

fn parse(path: &str, text: &str) -> Result<File, String> {
    let file: File = toml::from_str(text).map_err(|error| trusted::in_line(path, text, &error))?;
    for (name, value, least, most) in file.limits.bounds() {
        if !(least..=most).contains(&value) {
            return Err(format!("{path}: limits.{name} is {value}, and must be {least} to {most}"));
        }
    }
    Ok(file)
}

/// An absolute path without a slash at its end, of parts that mean themselves.
fn absolute(what: &str, path: Option<String>, default: &str) -> Result<String, String> {
    let path = path.unwrap_or_else(|| default.to_owned());
    let parts = path.strip_prefix('/').unwrap_or("..").split('/');
    if path.contains('\0') || parts.clone().any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{what}: {path:?} must be an absolute path without empty, . or .. parts"));
    }
    Ok(path)
}

/// Root is no user without rights.
fn worker(what: &str, uid: Option<u32>) -> Result<Option<u32>, String> {
    match uid {
        Some(0 | u32::MAX) => Err(format!("{what} must be the uid of a user that has nothing, and nobody else's")),
        uid => Ok(uid),
    }
}

fn names(what: &str, ours: &[&str], more: Vec<String>) -> Result<Vec<String>, String> {
    for name in &more {
        if name.contains('/') || matches!(name.as_str(), "" | "." | "..") {
            return Err(format!("{what}: {name:?} is no name of a file"));
        }
    }
    Ok(ours.iter().map(|&name| name.to_owned()).chain(more).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_name_and_its_default_is_within_its_bounds() {
        for (name, value, least, most) in Limits::default().bounds() {
            assert!((least..=most).contains(&value), "{name}");
            let file = parse("f", &format!("[limits]\n{name} = {most}\n")).unwrap();
            assert!(file.limits.bounds().iter().any(|bound| bound.0 == name && bound.1 == most), "{name}");
            let more = parse("f", &format!("[limits]\n{name} = {}\n", most + 1)).unwrap_err();
            assert!(more.contains(&format!("limits.{name} is")), "{more}");
        }
    }

    #[test]
    fn the_file_that_is_shipped_holds_the_defaults_all_of_them() {
        let text = include_str!("../../../dist/root.toml");
        let shipped = parse("root.toml", text).unwrap();
        assert_eq!(shipped.limits.bounds(), Limits::default().bounds());
        assert!(Limits::default().bounds().iter().all(|bound| text.contains(&format!("\n{} = ", bound.0))));
        let settings = Settings::default();
        assert_eq!((shipped.run_dir, shipped.lib_dir), (Some(settings.run_dir), Some(settings.lib_dir)));
        assert_eq!(shipped.program_dirs, Some(settings.program_dirs));
        assert_eq!(shipped.own_tables, Some(settings.own_tables));
        assert_eq!(shipped.log_level.as_deref().and_then(Level::parse), Some(settings.log_level));
        assert_eq!(shipped.isolate_guests, settings.isolate_guests);
        assert_eq!(shipped.waiting_worker, settings.waiting_worker);
        assert_eq!(shipped.vm_pid_namespace, settings.vm_pid_namespace);
        assert_eq!((shipped.mark, shipped.mark_mask), (Some(settings.mark.value), Some(settings.mark.mask)));
        assert!(shipped.vmm_names.is_empty() && shipped.jailer_names.is_empty() && shipped.fault.is_empty());
        assert_eq!(shipped.worker_uid, settings.worker_uid);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, told) in [
            ("\nprogram_dir = []\n", "f, line 2: unknown field `program_dir`"),
            ("[limits]\nconections = 1\n", "f, line 2: unknown field `conections`"),
            ("[limits]\nworkers = \"many\"\n", "f, line 2: invalid type"),
            ("[limits]\nworkers = -1\n", "f, line 2: "),
            ("a b", "f, line 1: "),
        ] {
            let error = parse("f", text).unwrap_err();
            assert!(error.starts_with(told) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_mark_has_bits_and_keeps_to_its_mask() {
        let of = |text: &str| {
            let file = parse("f", text)?;
            Settings::of("f", file, Flags::default()).map(|settings| settings.mark.to_string())
        };
        assert_eq!(of(""), Ok("0x62000000/0xff000000".into()));
        assert_eq!(of("mark = 0x10\nmark_mask = 0xf0\n"), Ok("0x00000010/0x000000f0".into()));
        assert_eq!(of("mark = 0xffffffff\nmark_mask = 0xffffffff\n"), Ok("0xffffffff/0xffffffff".into()));
        for (bad, told) in [
            ("mark = 0\n", "every packet's"),
            ("mark = 0x10\n", "outside mark_mask 0xff000000"),
            ("mark_mask = 0\n", "outside mark_mask"),
            ("mark = 0x62000001\n", "outside"),
            ("mark = -1\n", "f, line 1"),
            ("mark = 0x100000000\n", "f, line 1"),
            ("mark = \"0x62000000\"\n", "f, line 1"),
        ] {
            let error = of(bad).unwrap_err();
            assert!(error.starts_with('f') && error.contains(told), "{bad}: {error}");
        }
    }

    #[test]
    fn paths_mean_what_they_say() {
        for bad in ["", "/", "x", "/a/", "/a//b", "/a/../b", "/a/.", "/a\0"] {
            assert!(absolute("x", Some(bad.into()), "").is_err(), "{bad}");
        }
        assert_eq!(absolute("x", None, "/run/x").unwrap(), "/run/x");
    }
}
