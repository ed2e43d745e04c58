//! The client: one typed call for each method, over anything that reads and writes.
//!
//! ```no_run
//! use std::os::unix::net::UnixStream;
//! use std::time::Duration;
//! use wire::client::Client;
//! use wire::name::{addr::BridgeAddr, link::BridgeName};
//!
//! let client = Client::new(|| {
//!     let stream = UnixStream::connect("/run/banger-root/bangerd-root.sock")?;
//!     stream.set_read_timeout(Some(Duration::from_secs(60)))?;
//!     Ok(stream)
//! })
//! .op_id("op-3k9f");
//! let bridge = wire::net::Bridge {
//!     name: BridgeName::new("br-fc")?,
//!     addr: BridgeAddr::new("172.16.0.1", "24")?,
//! };
//! client.ensure_bridge(&bridge)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::code::Code;
use crate::disk::{FsckSays, Handles, HandlesSays, NewSnapshot, NewSnapshotSays, TargetSays};
use crate::image::{FileSays, Read as ReadFile, ReadSays, Write as WriteFiles, WriteSays};
use crate::method::Method;
use crate::name::dm::DmName;
use crate::name::link::{BridgeName, TapName};
use crate::name::signal::Signal;
use crate::net::{Bridge, BridgeSays, ClearResolverSays, Nat, NatSays, NewTap, NewTapSays};
use crate::net::{ResolverRoute, ResolverSays, Switch, TapSays, TapsSays};
use crate::params::base64::Base64;
use crate::path::{ChrootPath, HostPath};
use crate::probe::{Probe, ProbeSays, Probed};
use crate::reply::{DataSays, PathSays, PidReply, Resources, RunningReply};
use crate::vm::{ChrootSays, FindSays, Launch, LaunchSays, Pid, PidSays, ResolveSays, RestoreSays, RunningSays};
use crate::vm::{SignalSays, SocketAccessSays, Start};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The longest reply that is taken, in bytes: a file of 64 MiB in base64, and room around it.
pub const MAX_REPLY: usize = 96 << 20;

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// The helper could not be reached, or the connection broke.
    Io(io::Error),
    /// The helper answered something that is no reply.
    Reply(String),
    /// The helper refused.
    Refused(Refused),
}

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its code; `None` where it is none that we know.
    pub code: Option<Code>,
    /// Its line for a person.
    pub message: String,
    /// The operation's id, where the request had one.
    pub op_id: Option<String>,
}

/// Stands between why a VMM does not run its VM and the last lines of its log, which are its guest's words too.
pub const LAST_WORDS: &str = "; its last words: ";
/// What of it says that one was killed.
pub const KILLED: &str = "was ended by signal 9 ";
/// Stands there of one whose log is empty.
pub const NO_WORDS: &str = "; it said nothing";

impl Refused {
    /// Of a VMM that was started and does not run its VM: how it failed, without its last words.
    pub fn of_vmm(&self) -> Option<&str> {
        [LAST_WORDS, NO_WORDS].iter().find_map(|mark| self.message.split_once(mark)).map(|(how, _)| how)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "the root helper can't be reached: {error}"),
            Error::Reply(what) => write!(f, "the root helper's reply is not one: {what}"),
            Error::Refused(refused) => {
                write!(f, "{}: {}", refused.code.map_or("error", Code::as_str), refused.message)
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

/// A client. It connects anew for each call: a connection carries one.
pub struct Client<F> {
    connect: F,
    op_id: String,
    told: Option<fn(&Told<'_>)>,
}

/// A call that is over, however it went.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The method's name.
    pub method: &'a str,
    /// The operation's id; empty where it has none.
    pub op_id: &'a str,
    /// From before the connection to the end of the reply.
    pub took: Duration,
    /// Why it failed; `None` where it didn't.
    pub error: Option<&'a Error>,
}

#[derive(Serialize)]
struct Says<'a, P> {
    version: u32,
    method: &'a str,
    params: P,
    #[serde(skip_serializing_if = "str::is_empty")]
    op_id: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<ErrorAnswer>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    code: String,
    message: String,
    #[serde(default)]
    op_id: Option<String>,
}

#[derive(Deserialize)]
struct Empty {}

impl<S: Read + Write, F: Fn() -> io::Result<S>> Client<F> {
    /// A client over what `connect` opens. Timeouts are the stream's.
    pub fn new(connect: F) -> Client<F> {
        Client { connect, op_id: String::new(), told: None }
    }

    /// Has each call told to `told` when it is over.
    #[must_use]
    pub fn told(mut self, told: fn(&Told<'_>)) -> Client<F> {
        self.told = Some(told);
        self
    }

    /// Sends that id with each call; the helper's log and its errors repeat it.
    pub fn op_id(mut self, op_id: impl Into<String>) -> Client<F> {
        self.op_id = op_id.into();
        self
    }

    /// Calls a method by name with any parameters; the result as its JSON.
    pub fn call_raw(&self, method: &str, params: &RawValue) -> Result<Box<RawValue>, Error> {
        self.exchange(method, params)
    }

    fn exchange<P: Serialize>(&self, method: &str, params: P) -> Result<Box<RawValue>, Error> {
        let begun = Instant::now();
        let result = self.try_exchange(method, params);
        if let Some(told) = self.told {
            told(&Told { method, op_id: &self.op_id, took: begun.elapsed(), error: result.as_ref().err() });
        }
        result
    }

    fn try_exchange<P: Serialize>(&self, method: &str, params: P) -> Result<Box<RawValue>, Error> {
        let says = Says { version: 1, method, params, op_id: &self.op_id };
        let mut stream = (self.connect)()?;
        // A helper that refuses the peer answers without reading: its reply says more than our broken pipe.
        let sent = send(&says, &mut stream);
        let reply = read_line(&mut stream)?;
        if reply.is_empty() {
            sent?;
            return Err(Error::Reply("the connection ended without one".into()));
        }
        let answer: Answer = serde_json::from_slice(&reply).map_err(|error| Error::Reply(error.to_string()))?;
        match answer {
            Answer { ok: true, result: Some(result), .. } => Ok(result),
            Answer { ok: false, error: Some(error), .. } => Err(Error::Refused(Refused {
                code: Code::parse(&error.code),
                message: error.message,
                op_id: error.op_id,
            })),
            _ => Err(Error::Reply("it has neither a result nor an error".into())),
        }
    }

    fn call<P: Serialize, R: DeserializeOwned>(&self, method: Method, params: P) -> Result<R, Error> {
        let result = self.exchange(method.name(), params)?;
        serde_json::from_str(result.get()).map_err(|error| Error::Reply(error.to_string()))
    }

    fn done<P: Serialize>(&self, method: Method, params: P) -> Result<(), Error> {
        self.call::<P, Empty>(method, params).map(|Empty {}| ())
    }

    /// `priv.ensure_bridge`
    pub fn ensure_bridge(&self, bridge: &Bridge) -> Result<(), Error> {
        self.done(Method::EnsureBridge, BridgeSays::from(bridge))
    }

    /// `priv.create_tap`
    pub fn create_tap(&self, new: &NewTap) -> Result<(), Error> {
        self.done(Method::CreateTap, NewTapSays::from(new))
    }

    /// `priv.delete_tap`
    pub fn delete_tap(&self, tap: &TapName) -> Result<(), Error> {
        self.done(Method::DeleteTap, TapSays { tap_name: tap.to_string() })
    }

    /// `priv.sync_resolver_routing`
    pub fn sync_resolver_routing(&self, route: &ResolverRoute) -> Result<(), Error> {
        let says = ResolverSays { bridge_name: route.bridge.to_string(), server_addr: route.server.to_string() };
        self.done(Method::SyncResolverRouting, says)
    }

    /// `priv.clear_resolver_routing`
    pub fn clear_resolver_routing(&self, bridge: &BridgeName) -> Result<(), Error> {
        self.done(Method::ClearResolverRouting, ClearResolverSays { bridge_name: bridge.to_string() })
    }

    /// `priv.ensure_nat`
    pub fn ensure_nat(&self, nat: &Nat) -> Result<(), Error> {
        let says =
            NatSays { guest_ip: nat.guest.to_string(), tap: nat.tap.to_string(), enable: nat.switch == Switch::On };
        self.done(Method::EnsureNat, says)
    }

    /// `priv.create_dm_snapshot`
    pub fn create_dm_snapshot(&self, new: &NewSnapshot) -> Result<Handles, Error> {
        let says = NewSnapshotSays {
            rootfs_path: new.rootfs.as_str().to_owned(),
            cow_path: new.cow.as_str().to_owned(),
            dm_name: new.name.to_string(),
        };
        let found: HandlesSays = self.call(Method::CreateDmSnapshot, says)?;
        found.check().map_err(|refusal| Error::Reply(refusal.to_string()))
    }

    /// `priv.cleanup_dm_snapshot`
    pub fn cleanup_dm_snapshot(&self, handles: &Handles) -> Result<(), Error> {
        self.done(Method::CleanupDmSnapshot, HandlesSays::from(handles))
    }

    /// `priv.remove_dm_snapshot`
    pub fn remove_dm_snapshot(&self, name: &DmName) -> Result<(), Error> {
        self.done(Method::RemoveDmSnapshot, TargetSays { target: name.to_string() })
    }

    /// `priv.fsck_snapshot`
    pub fn fsck_snapshot(&self, name: &DmName) -> Result<(), Error> {
        self.done(Method::FsckSnapshot, FsckSays { dm_dev: name.device() })
    }

    /// `priv.read_ext4_file`; the file's bytes.
    pub fn read_ext4_file(&self, read: &ReadFile) -> Result<Vec<u8>, Error> {
        let says = ReadSays { image_path: read.image.path(), guest_path: read.path.to_string() };
        let result = self.exchange(Method::ReadExt4File.name(), says)?;
        let found: DataSays<'_> =
            serde_json::from_str(result.get()).map_err(|error| Error::Reply(error.to_string()))?;
        found.data.decode().map_err(Error::Reply)
    }

    /// `priv.write_ext4_files`
    pub fn write_ext4_files(&self, write: WriteFiles) -> Result<(), Error> {
        let files = write.files.into_iter().map(|file| FileSays {
            guest_path: file.path.to_string(),
            data: Base64::Bytes(file.data),
            mode: u32::from(file.mode),
        });
        self.done(Method::WriteExt4Files, WriteSays { image_path: write.image.path(), files: files.collect() })
    }

    /// `priv.resolve_firecracker_binary`; empty asks for `firecracker`.
    pub fn resolve_firecracker_binary(&self, requested: &str) -> Result<String, Error> {
        let says = ResolveSays { requested: requested.to_owned() };
        self.call::<_, PathSays>(Method::ResolveFirecrackerBinary, says).map(|found| found.path)
    }

    /// `priv.launch_firecracker`, or, where the guest begins with a saved state, `priv.restore_firecracker`; the VMM's
    /// pid.
    pub fn launch_firecracker(&self, launch: &Launch) -> Result<Pid, Error> {
        match launch.start {
            Start::Boot(_) => self.call::<_, PidReply>(Method::LaunchFirecracker, LaunchSays::from(launch)),
            Start::Restore(_) => self.call::<_, PidReply>(Method::RestoreFirecracker, RestoreSays::from(launch)),
        }
        .and_then(pid)
    }

    /// `priv.ensure_socket_access`; `label` words the error.
    pub fn ensure_socket_access(&self, path: &HostPath, label: &str) -> Result<(), Error> {
        let says = SocketAccessSays { socket_path: path.as_str().to_owned(), label: label.to_owned() };
        self.done(Method::EnsureSocketAccess, says)
    }

    /// `priv.find_firecracker_pid`
    pub fn find_firecracker_pid(&self, api_sock: &str) -> Result<Pid, Error> {
        self.call::<_, PidReply>(Method::FindFirecrackerPid, FindSays { api_sock: api_sock.to_owned() }).and_then(pid)
    }

    /// `priv.kill_process`
    pub fn kill_process(&self, pid: Pid) -> Result<(), Error> {
        self.done(Method::KillProcess, PidSays { pid: i64::from(pid.0) })
    }

    /// `priv.signal_process`
    pub fn signal_process(&self, pid: Pid, signal: Signal) -> Result<(), Error> {
        self.done(Method::SignalProcess, SignalSays { pid: i64::from(pid.0), signal: signal.name().to_owned() })
    }

    /// `priv.process_running`; an empty `api_sock` asks about the pid alone.
    pub fn process_running(&self, pid: Pid, api_sock: &str) -> Result<bool, Error> {
        let says = RunningSays { pid: i64::from(pid.0), api_sock: api_sock.to_owned() };
        self.call::<_, RunningReply>(Method::ProcessRunning, says).map(|found| found.running)
    }

    /// `priv.cleanup_jailer_chroot`
    pub fn cleanup_jailer_chroot(&self, chroot: &ChrootPath) -> Result<(), Error> {
        let mut path = chroot.vm_dir.as_str().to_owned();
        if chroot.root_only {
            path.push_str("/root");
        }
        self.done(Method::CleanupJailerChroot, ChrootSays { chroot_root: path })
    }

    /// `priv.list_resources`
    pub fn list_resources(&self) -> Result<Resources, Error> {
        self.call(Method::ListResources, serde_json::Map::new())
    }

    /// `priv.delete_taps`
    pub fn delete_taps(&self, taps: &[TapName]) -> Result<(), Error> {
        self.done(Method::DeleteTaps, TapsSays { tap_names: taps.iter().map(ToString::to_string).collect() })
    }

    /// `priv.probe_network`
    pub fn probe_network(&self, probe: &Probe) -> Result<Probed, Error> {
        self.call(Method::ProbeNetwork, ProbeSays::from(probe))
    }
}

fn pid(reply: PidReply) -> Result<Pid, Error> {
    Pid::new(reply.pid).ok_or_else(|| Error::Reply(format!("{} is no pid", reply.pid)))
}

/// Sends a request. A large one goes while it is written: it is nowhere whole, and the helper reads it meanwhile.
fn send(says: &impl Serialize, stream: &mut impl Write) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(16 << 10, stream);
    let written = crate::reply::write(says, &mut out).map_err(io::Error::from);
    let sent = written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    // What could not be sent is not tried again when it is dropped.
    let _ = out.into_parts();
    sent
}

/// The reply's line, without its newline; or what came before the end.
fn read_line(stream: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    // Most replies are short: room for a long one is made when there is one.
    let mut chunk = vec![0; 512];
    loop {
        if !line.is_empty() {
            chunk.resize(64 << 10, 0);
        }
        let n = match stream.read(&mut chunk) {
            Ok(0) => return Ok(line),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Io(error)),
        };
        let end = chunk[..n].iter().position(|&b| b == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(n)]);
        if end.is_some() {
            return Ok(line);
        }
        if line.len() > MAX_REPLY {
            return Err(Error::Reply(format!("it has more than {MAX_REPLY} bytes")));
        }
    }
}
