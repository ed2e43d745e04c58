//! The table of the methods. Start reading here.
//!
//! A method is a name, a type for what it asks, and a reply. [`Request::parse`] turns a name and its parameters into a
//! checked [`Request`]; whoever holds one need check nothing again.

use crate::code::{Code, Refusal};
use crate::disk::{self, Handles, NewSnapshot};
use crate::frame::{Envelope, Frame};
use crate::image::{self, Read, Write};
use crate::name::dm::DmName;
use crate::name::link::{BridgeName, TapName};
use crate::net::{self, Bridge, Nat, NewTap, ResolverRoute};
use crate::path::{ChrootPath, Roots};
use crate::probe::{self, Probe};
use crate::vm::{self, Kill, Launch, Pid, Running, SocketAccess, Wanted};

/// Declares the methods once: variant, name on the wire, what it does in a line.
macro_rules! methods {
    ($($variant:ident $name:literal $doc:literal;)*) => {
        /// A method, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Method {
            $(#[doc = $doc] $variant,)*
        }

        impl Method {
            /// Every method, in the contract's order, ours behind them.
            pub const ALL: &'static [Method] = &[$(Method::$variant,)*];

            /// Its name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Method::$variant => $name,)* }
            }

            /// What it does, in a line.
            pub const fn about(self) -> &'static str {
                match self { $(Method::$variant => $doc,)* }
            }

            /// The method of that name.
            pub fn parse(name: &str) -> Option<Method> {
                match name { $($name => Some(Method::$variant),)* _ => None }
            }
        }
    };
}

methods! {
    EnsureBridge "priv.ensure_bridge" "A bridge exists, is up and has its address.";
    CreateTap "priv.create_tap" "A tap of the owner's is on the bridge, up.";
    DeleteTap "priv.delete_tap" "A tap is gone.";
    SyncResolverRouting "priv.sync_resolver_routing" "systemd-resolved sends ~vm to a name server.";
    ClearResolverRouting "priv.clear_resolver_routing" "It no longer does.";
    EnsureNat "priv.ensure_nat" "A guest reaches the outside, or no longer does.";
    CreateDmSnapshot "priv.create_dm_snapshot" "A dm snapshot over a root file system.";
    CleanupDmSnapshot "priv.cleanup_dm_snapshot" "A snapshot and its loop devices are gone.";
    RemoveDmSnapshot "priv.remove_dm_snapshot" "A snapshot's dm device is gone.";
    FsckSnapshot "priv.fsck_snapshot" "A snapshot's file system is checked and repaired.";
    ReadExt4File "priv.read_ext4_file" "A file inside an ext4 image is read.";
    WriteExt4Files "priv.write_ext4_files" "Files inside an ext4 image are written.";
    ResolveFirecrackerBinary "priv.resolve_firecracker_binary" "Where the VMM's program is.";
    LaunchFirecracker "priv.launch_firecracker" "A VM runs.";
    EnsureSocketAccess "priv.ensure_socket_access" "A socket belongs to the owner.";
    FindFirecrackerPid "priv.find_firecracker_pid" "The VM that has an API socket.";
    KillProcess "priv.kill_process" "A VM's process is killed.";
    SignalProcess "priv.signal_process" "A VM's process is sent a signal.";
    ProcessRunning "priv.process_running" "Whether a VM's process runs.";
    CleanupJailerChroot "priv.cleanup_jailer_chroot" "A VM's chroot is gone.";
    ListResources "priv.list_resources" "What of banger's is in the kernel now (ours: not in the contract).";
    DeleteTaps "priv.delete_taps" "Many taps are gone, in the time of one (ours: not in the contract).";
    ProbeNetwork "priv.probe_network" "Where a guest's packet ends (ours: not in the contract).";
    RestoreFirecracker "priv.restore_firecracker" "A VM goes on from a saved one (ours: not in the contract).";
}

/// A request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// [`Method::EnsureBridge`]
    EnsureBridge(Bridge),
    /// [`Method::CreateTap`]
    CreateTap(NewTap),
    /// [`Method::DeleteTap`]
    DeleteTap(TapName),
    /// [`Method::SyncResolverRouting`]; `None`: nothing to do.
    SyncResolverRouting(Option<ResolverRoute>),
    /// [`Method::ClearResolverRouting`]; `None`: nothing to do.
    ClearResolverRouting(Option<BridgeName>),
    /// [`Method::EnsureNat`]
    EnsureNat(Nat),
    /// [`Method::CreateDmSnapshot`]
    CreateDmSnapshot(NewSnapshot),
    /// [`Method::CleanupDmSnapshot`]
    CleanupDmSnapshot(Handles),
    /// [`Method::RemoveDmSnapshot`]
    RemoveDmSnapshot(DmName),
    /// [`Method::FsckSnapshot`]
    FsckSnapshot(DmName),
    /// [`Method::ReadExt4File`]
    ReadExt4File(Read),
    /// [`Method::WriteExt4Files`]
    WriteExt4Files(Write),
    /// [`Method::ResolveFirecrackerBinary`]
    ResolveFirecrackerBinary(Wanted),
    /// [`Method::LaunchFirecracker`]
    LaunchFirecracker(Box<Launch>),
    /// [`Method::EnsureSocketAccess`]
    EnsureSocketAccess(SocketAccess),
    /// [`Method::FindFirecrackerPid`]; the API socket's path.
    FindFirecrackerPid(String),
    /// [`Method::KillProcess`]
    KillProcess(Pid),
    /// [`Method::SignalProcess`]
    SignalProcess(Kill),
    /// [`Method::ProcessRunning`]
    ProcessRunning(Running),
    /// [`Method::CleanupJailerChroot`]
    CleanupJailerChroot(ChrootPath),
    /// [`Method::ListResources`]
    ListResources,
    /// [`Method::DeleteTaps`]; a name may stand twice.
    DeleteTaps(Vec<TapName>),
    /// [`Method::ProbeNetwork`]
    ProbeNetwork(Probe),
    /// [`Method::RestoreFirecracker`]; its start is a saved state.
    RestoreFirecracker(Box<Launch>),
}

/// Parameters of a method that takes none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Request {
    /// [`Request::parse`] of a frame that is used up: of files that are to be written the largest is decoded over the
    /// request's text, so that it needs no memory beside it.
    ///
    /// # Errors
    /// Where its envelope or its parameters are none.
    pub fn of(frame: Frame, roots: &Roots) -> Result<Request, Refusal> {
        let envelope = frame.envelope()?;
        if Method::parse(&envelope.method) != Some(Method::WriteExt4Files) {
            return Request::parse(&envelope, roots);
        }
        drop(envelope);
        let (text, params) = frame.into_parts();
        let write = match params {
            Some(params) => image::write_ext4_files_over(text, params, roots)?,
            None => image::write_ext4_files(None, roots)?,
        };
        Ok(Request::WriteExt4Files(write))
    }

    /// Checks a request: its name, its parameters' types, then each field, in the existing helper's order.
    ///
    /// ```
    /// use wire::{Request, frame::Decoder, path::Roots};
    /// let roots = Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() };
    /// let text = br#"{"method":"priv.kill_process","params":{"pid":48213}}"#;
    /// let frame = Decoder::new(4096).push(text).unwrap().unwrap();
    /// assert_eq!(Request::parse(&frame.envelope().unwrap(), &roots), Ok(Request::KillProcess(wire::vm::Pid(48213))));
    /// ```
    pub fn parse(envelope: &Envelope<'_>, roots: &Roots) -> Result<Request, Refusal> {
        let method = Method::parse(&envelope.method)
            .ok_or_else(|| Refusal::new(Code::UnknownMethod, "", bounded(&envelope.method)))?;
        let text = envelope.params;
        Ok(match method {
            Method::EnsureBridge => Request::EnsureBridge(net::ensure_bridge(text)?),
            Method::CreateTap => Request::CreateTap(net::create_tap(text)?),
            Method::DeleteTap => Request::DeleteTap(net::delete_tap(text)?),
            Method::SyncResolverRouting => Request::SyncResolverRouting(net::sync_resolver_routing(text)?),
            Method::ClearResolverRouting => Request::ClearResolverRouting(net::clear_resolver_routing(text)?),
            Method::EnsureNat => Request::EnsureNat(net::ensure_nat(text)?),
            Method::CreateDmSnapshot => Request::CreateDmSnapshot(disk::create_dm_snapshot(text, roots)?),
            Method::CleanupDmSnapshot => Request::CleanupDmSnapshot(disk::cleanup_dm_snapshot(text)?),
            Method::RemoveDmSnapshot => Request::RemoveDmSnapshot(disk::remove_dm_snapshot(text)?),
            Method::FsckSnapshot => Request::FsckSnapshot(disk::fsck_snapshot(text)?),
            Method::ReadExt4File => Request::ReadExt4File(image::read_ext4_file(text, roots)?),
            Method::WriteExt4Files => Request::WriteExt4Files(image::write_ext4_files(text, roots)?),
            Method::ResolveFirecrackerBinary => {
                Request::ResolveFirecrackerBinary(vm::resolve_firecracker_binary(text)?)
            }
            Method::LaunchFirecracker => Request::LaunchFirecracker(Box::new(vm::launch_firecracker(text, roots)?)),
            Method::EnsureSocketAccess => Request::EnsureSocketAccess(vm::ensure_socket_access(text, roots)?),
            Method::FindFirecrackerPid => Request::FindFirecrackerPid(vm::find_firecracker_pid(text)?),
            Method::KillProcess => Request::KillProcess(vm::kill_process(text)?),
            Method::SignalProcess => Request::SignalProcess(vm::signal_process(text)?),
            Method::ProcessRunning => Request::ProcessRunning(vm::process_running(text)?),
            Method::CleanupJailerChroot => Request::CleanupJailerChroot(vm::cleanup_jailer_chroot(text, roots)?),
            Method::ListResources => {
                crate::params::read::<Nothing>(text)?;
                Request::ListResources
            }
            Method::DeleteTaps => Request::DeleteTaps(net::delete_taps(text)?),
            Method::ProbeNetwork => Request::ProbeNetwork(probe::probe_network(text)?),
            Method::RestoreFirecracker => Request::RestoreFirecracker(Box::new(vm::restore_firecracker(text, roots)?)),
        })
    }
}

/// A method's name as the reply repeats it: as it was sent, up to 256 bytes.
fn bounded(name: &str) -> String {
    let end = (0..=name.len().min(256)).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    name[..end].to_owned()
}
