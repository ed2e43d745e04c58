//! Replies: what a method gives back, and the line that says so.

use crate::code::{Code, Refusal};
use crate::disk::{Handles, HandlesSays};
use crate::params::base64::{self, Base64};
use crate::probe::Probed;
use crate::vm::Pid;
use serde::{Deserialize, Serialize};
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use std::io;

/// What an operation gives back.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `{}`
    Done,
    /// `{"BaseLoop":…,"COWLoop":…,"DMName":…,"DMDev":…}`
    Handles(Handles),
    /// `{"data":"…"}`, in base64.
    Data(Vec<u8>),
    /// `{"path":"…"}`
    Path(String),
    /// `{"pid":…}`
    Pid(Pid),
    /// `{"running":…}`
    Running(bool),
    /// What `priv.list_resources` found.
    Resources(Resources),
    /// Where `priv.probe_network`'s packet ended.
    Probed(Probed),
}

/// What of banger's is in the kernel now. The result of `priv.list_resources`; fields are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Resources {
    /// Bridges with our mark.
    pub bridges: Vec<BridgeFound>,
    /// Taps with our mark.
    pub taps: Vec<TapFound>,
    /// Guests that have a way out.
    pub guests: Vec<GuestFound>,
    /// VMs that were launched here and still run.
    pub vms: Vec<VmFound>,
    /// Rules of ours in others' tables, which accept our mark there.
    pub rules_elsewhere: Vec<RuleElsewhere>,
    /// What of another firewall's drops guests' packets, and is not ours to change.
    pub blocked_by: Vec<BlockedBy>,
    /// Switches of the kernel's that were changed for guests.
    pub sysctls: Vec<SysctlFound>,
    /// Snapshots with our mark.
    pub snapshots: Vec<SnapshotFound>,
}

/// A bridge of ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BridgeFound {
    /// Its name.
    pub name: String,
    /// Its addresses, with prefix.
    pub addresses: Vec<String>,
    /// Whether it is up.
    pub up: bool,
    /// How many links are on it.
    pub ports: u32,
    /// By what it is known as banger's.
    pub why: String,
}

/// A tap of ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TapFound {
    /// Its name.
    pub name: String,
    /// Its bridge; empty where it is on none.
    pub bridge: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether something has it open.
    pub carrier: bool,
    /// Whether its bridge parts it from other isolated taps.
    pub isolated: bool,
    /// By what it is known as banger's.
    pub why: String,
}

/// A guest with a way out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestFound {
    /// Its address.
    pub address: String,
    /// Its bridge.
    pub bridge: String,
    /// The tap that the address is bound to; empty where it is bound to none.
    pub tap: String,
    /// By what it is known as banger's.
    pub why: String,
}

/// A rule of ours in another's table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RuleElsewhere {
    /// The table's family.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle.
    pub handle: u64,
    /// By what it is known as banger's.
    pub why: String,
}

/// A switch of the kernel's that banger changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SysctlFound {
    /// Its name as `sysctl` takes it: `net.ipv4.conf.eth0.forwarding`.
    pub name: String,
    /// What it is now.
    pub value: u32,
    /// What banger set.
    pub set: u32,
    /// For what, and until when.
    pub why: String,
}

/// What drops guests' packets in a table that is not ours to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BlockedBy {
    /// The table's family.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; 0 for the chain's policy.
    pub handle: u64,
    /// What it does, and what to do.
    pub why: String,
}

/// A snapshot of ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotFound {
    /// Its name; its node is `/dev/mapper/` and that.
    pub name: String,
    /// The file that it is a snapshot of, as the kernel names it.
    pub rootfs: String,
    /// The file that holds what was changed.
    pub cow: String,
    /// The loop device of the first.
    pub base_loop: String,
    /// The loop device of the second.
    pub cow_loop: String,
    /// How many bytes of the second are used, the format's own among them.
    pub used_bytes: u64,
    /// How many there are. Once all are used the snapshot is invalid.
    pub cow_bytes: u64,
    /// Whether somebody has it open.
    pub in_use: bool,
    /// How it does.
    pub state: SnapshotState,
    /// What makes it ours.
    pub why: String,
}

/// How a snapshot does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum SnapshotState {
    /// It can be used.
    #[default]
    Ready,
    /// Its making was cut off: `create_dm_snapshot` makes it anew, `remove_dm_snapshot` takes it away.
    Unfinished,
    /// Its store was full: all that was changed is lost.
    Invalid,
}

/// A VM that runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmFound {
    /// Its id.
    pub vm_id: String,
    /// The VMM's process.
    pub pid: i32,
    /// The VMM's program.
    pub program: String,
    /// Its API socket.
    pub socket: String,
    /// Its tap.
    pub tap: String,
    /// Its CID.
    pub cid: u32,
    /// Its jail, `<base>/firecracker/<vm_id>`, where it was made; empty for one without.
    pub jail: String,
    /// The name of its control group below `banger`; it is there where the machine gives groups.
    pub control_group: String,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct DataSays<'a> {
    #[serde(borrow)]
    pub(crate) data: Base64<'a>,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct PathSays {
    pub(crate) path: String,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct PidReply {
    pub(crate) pid: i64,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct RunningReply {
    pub(crate) running: bool,
}

#[derive(Serialize)]
struct Success<T> {
    ok: bool,
    result: T,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Failure<'a> {
    ok: bool,
    error: ErrorSays<'a>,
}

#[derive(Serialize)]
struct ErrorSays<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    op_id: &'a str,
}

/// A success's line. `marshal_failed` where it would be longer than `limit` bytes.
pub fn success(reply: &Reply, limit: usize) -> Result<Vec<u8>, Refusal> {
    let written = match reply {
        Reply::Done => line(Empty {}),
        Reply::Handles(handles) => line(HandlesSays::from(handles)),
        // Its room is known before: four thirds of 64 MiB pass here.
        Reply::Data(data) => data_line(data),
        Reply::Path(path) => line(PathSays { path: path.clone() }),
        Reply::Pid(pid) => line(PidReply { pid: i64::from(pid.0) }),
        Reply::Running(running) => line(RunningReply { running: *running }),
        Reply::Resources(resources) => line(resources),
        Reply::Probed(probed) => line(probed),
    };
    let written = written.map_err(|error| Refusal::new(Code::MarshalFailed, "", error.to_string()))?;
    if written.len() > limit {
        return Err(Refusal::new(Code::MarshalFailed, "", format!("the reply has more than {limit} bytes")));
    }
    Ok(written)
}

/// An error's line; `op_id` stays away where it is empty.
pub fn failure(code: Code, message: &str, op_id: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(failure_len(code, message, op_id));
    // Strings into a vector: neither can fail.
    if write(&failed(code, message, op_id), &mut out).is_err() {
        out = br#"{"ok":false,"error":{"code":"marshal_failed","message":"the error could not be written"}}"#.to_vec();
    }
    out.push(b'\n');
    out
}

/// How many bytes [`failure`] gives, without making them: an `op_id` is the caller's, and escaped it takes up to six
/// times as many as were sent.
pub fn failure_len(code: Code, message: &str, op_id: &str) -> usize {
    let mut counted = Counted(1);
    // Nothing is kept, so nothing can fail.
    let _ = write(&failed(code, message, op_id), &mut counted);
    counted.0
}

fn failed<'a>(code: Code, message: &'a str, op_id: &'a str) -> Failure<'a> {
    Failure { ok: false, error: ErrorSays { code: code.as_str(), message, op_id } }
}

/// Bytes that are counted and go nowhere.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn line<T: Serialize>(result: T) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    write(&Success { ok: true, result }, &mut out)?;
    out.push(b'\n');
    Ok(out)
}

fn data_line(data: &[u8]) -> serde_json::Result<Vec<u8>> {
    const BEFORE: &[u8] = br#"{"ok":true,"result":{"data":"#;
    const BEHIND: &[u8] = b"}}\n";
    let length = data.len().div_ceil(3).saturating_mul(4) + 2;
    let mut out = Vec::with_capacity(BEFORE.len() + length + BEHIND.len());
    out.extend(BEFORE);
    base64::write(data, &mut out).map_err(serde_json::Error::io)?;
    out.extend(BEHIND);
    Ok(out)
}

/// Writes JSON as both sides of the wire spell it.
pub(crate) fn write<T: Serialize>(value: &T, out: impl io::Write) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, HtmlSafe(CompactFormatter)))
}

/// Compact JSON with `<`, `>`, `&`, U+2028 and U+2029 escaped, byte for byte as the existing helper's encoder does; bytes
/// are base64, as there.
struct HtmlSafe(CompactFormatter);

impl Formatter for HtmlSafe {
    fn write_byte_array<W: ?Sized + io::Write>(&mut self, out: &mut W, bytes: &[u8]) -> io::Result<()> {
        base64::write(bytes, out)
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices() {
            if matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') {
                out.write_all(&fragment.as_bytes()[plain..at])?;
                write!(out, "\\u{:04x}", u32::from(c))?;
                plain = at + c.len_utf8();
            }
        }
        out.write_all(&fragment.as_bytes()[plain..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: Reply) -> String {
        String::from_utf8(success(&reply, 1 << 20).unwrap()).unwrap()
    }

    #[test]
    fn success_lines() {
        assert_eq!(text(Reply::Done), "{\"ok\":true,\"result\":{}}\n");
        assert_eq!(text(Reply::Data(b"web\n".to_vec())), "{\"ok\":true,\"result\":{\"data\":\"d2ViCg==\"}}\n");
        assert_eq!(text(Reply::Data(vec![])), "{\"ok\":true,\"result\":{\"data\":\"\"}}\n");
        assert_eq!(text(Reply::Pid(Pid(7))), "{\"ok\":true,\"result\":{\"pid\":7}}\n");
        assert_eq!(text(Reply::Running(false)), "{\"ok\":true,\"result\":{\"running\":false}}\n");
        assert_eq!(
            text(Reply::Path("/usr/bin/firecracker".into())),
            "{\"ok\":true,\"result\":{\"path\":\"/usr/bin/firecracker\"}}\n"
        );
        assert_eq!(
            text(Reply::Handles(Handles::default())),
            "{\"ok\":true,\"result\":{\"BaseLoop\":\"\",\"COWLoop\":\"\",\"DMName\":\"\",\"DMDev\":\"\"}}\n"
        );
    }

    #[test]
    fn a_reply_over_the_limit_is_refused() {
        assert_eq!(success(&Reply::Data(vec![0; 100]), 100).unwrap_err().code, Code::MarshalFailed);
    }

    #[test]
    fn error_lines_are_escaped_as_before() {
        assert_eq!(
            failure(Code::UnknownMethod, "x<y>&\u{2028}\u{1}", "op-<1>&"),
            b"{\"ok\":false,\"error\":{\"code\":\"unknown_method\",\"message\":\"x\\u003cy\\u003e\\u0026\\u2028\\u0001\",\"op_id\":\"op-\\u003c1\\u003e\\u0026\"}}\n"
        );
        assert_eq!(
            failure(Code::UnknownMethod, "x", ""),
            b"{\"ok\":false,\"error\":{\"code\":\"unknown_method\",\"message\":\"x\"}}\n"
        );
    }

    #[test]
    fn an_errors_length_is_known_before_it_is_written() {
        for op_id in ["", "op-1", "<&>\u{2028}\u{1}\"\\é", &"<".repeat(5000)] {
            let line = failure(Code::BadParams, "m<", op_id);
            assert_eq!(failure_len(Code::BadParams, "m<", op_id), line.len(), "{op_id}");
        }
    }
}
