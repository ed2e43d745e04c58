//! JSON Schema of every method, made from the types that read and write it.
//!
//! A schema says what to send and what comes back. What a helper takes beyond it (`null` for a zero value, the
//! snake_case spellings of drives and handles) and what it checks further (names, paths, ranges) stands in
//! `docs/helper.md`.

use crate::method::Method;
use crate::{disk, image, net, probe, reply, vm};
use schemars::{JsonSchema, Schema, json_schema, schema_for};

fn of<T: JsonSchema>() -> Schema {
    let mut schema = schema_for!(T);
    // Names of types of ours: nobody's business on the wire.
    schema.remove("title");
    schema
}

fn nothing() -> Schema {
    json_schema!({"type": "object", "properties": {}, "additionalProperties": false})
}

/// What a method takes.
pub fn params(method: Method) -> Schema {
    match method {
        Method::EnsureBridge => of::<net::BridgeSays>(),
        Method::CreateTap => of::<net::NewTapSays>(),
        Method::DeleteTap => of::<net::TapSays>(),
        Method::SyncResolverRouting => of::<net::ResolverSays>(),
        Method::ClearResolverRouting => of::<net::ClearResolverSays>(),
        Method::EnsureNat => of::<net::NatSays>(),
        Method::CreateDmSnapshot => of::<disk::NewSnapshotSays>(),
        Method::CleanupDmSnapshot => of::<disk::HandlesSays>(),
        Method::RemoveDmSnapshot => of::<disk::TargetSays>(),
        Method::FsckSnapshot => of::<disk::FsckSays>(),
        Method::ReadExt4File => of::<image::ReadSays>(),
        Method::WriteExt4Files => of::<image::WriteSays<'_>>(),
        Method::ResolveFirecrackerBinary => of::<vm::ResolveSays>(),
        Method::LaunchFirecracker => of::<vm::LaunchSays>(),
        Method::EnsureSocketAccess => of::<vm::SocketAccessSays>(),
        Method::FindFirecrackerPid => of::<vm::FindSays>(),
        Method::KillProcess => of::<vm::PidSays>(),
        Method::SignalProcess => of::<vm::SignalSays>(),
        Method::ProcessRunning => of::<vm::RunningSays>(),
        Method::CleanupJailerChroot => of::<vm::ChrootSays>(),
        Method::ListResources => nothing(),
        Method::DeleteTaps => of::<net::TapsSays>(),
        Method::ProbeNetwork => of::<probe::ProbeSays>(),
        Method::RestoreFirecracker => of::<vm::RestoreSays>(),
    }
}

/// What a method gives back.
pub fn result(method: Method) -> Schema {
    match method {
        Method::EnsureBridge
        | Method::CreateTap
        | Method::DeleteTap
        | Method::SyncResolverRouting
        | Method::ClearResolverRouting
        | Method::EnsureNat
        | Method::CleanupDmSnapshot
        | Method::RemoveDmSnapshot
        | Method::FsckSnapshot
        | Method::WriteExt4Files
        | Method::EnsureSocketAccess
        | Method::KillProcess
        | Method::SignalProcess
        | Method::CleanupJailerChroot
        | Method::DeleteTaps => nothing(),
        Method::CreateDmSnapshot => of::<disk::HandlesSays>(),
        Method::ReadExt4File => of::<reply::DataSays<'_>>(),
        Method::ResolveFirecrackerBinary => of::<reply::PathSays>(),
        Method::LaunchFirecracker | Method::FindFirecrackerPid | Method::RestoreFirecracker => of::<reply::PidReply>(),
        Method::ProcessRunning => of::<reply::RunningReply>(),
        Method::ListResources => of::<reply::Resources>(),
        Method::ProbeNetwork => of::<probe::Probed>(),
    }
}
