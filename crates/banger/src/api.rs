//! What `banger` and `bangerd` say to each other, over the daemon's Unix socket.
//!
//! One connection is one call. The caller writes one line of JSON, a [`Call`]; the daemon answers lines, each an [`Event`]:
//! any number of `stage`, at most one `attached`, and last exactly one `done` or `error`. A connection that ends without
//! either is a lost call. While the call lasts the caller may write [`Word`]s; its end of the connection closed means
//! that it is gone.
//!
//! A connection to a guest, and a VM's console, are handed over as descriptors (`SCM_RIGHTS`) with `attached`: what
//! passes through them never passes through the daemon.

pub mod asset;
pub mod client;
pub mod conn;
pub mod ssh;
pub mod template;
pub mod vm;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vm::{Machine, Pushed};

/// The longest line, in bytes, either way.
pub const MAX_LINE: usize = 1 << 20;

/// A call: what is asked for, and the id under which every part of it is logged, the helper's too.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// 1 to 64 letters, digits, `-`, `_`, `.`; the daemon makes one where it is empty.
    pub op_id: String,
    /// Whether each call to the root helper is to be told. On the wire `trace`, absent where it isn't.
    pub trace: bool,
    /// What is asked for.
    pub request: Request,
}

/// What can be asked for. On the wire an object: `op` names it, `op_id` stands beside, and the rest are its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Request {
    /// `{}`: the daemon is there.
    #[serde(rename = "ping")]
    Ping {},
    /// Versions of daemon and helper.
    #[serde(rename = "version")]
    Version {},
    /// Makes a VM, starts it, and hands over a connection to its agent. It is taken away when the caller says
    /// [`Word::Finished`] or goes, unless it is to be kept.
    #[serde(rename = "vm.run")]
    VmRun {
        /// What it is to be.
        machine: Machine,
        /// Whether it stays.
        keep: bool,
    },
    /// What [`Request::VmRun`] and [`Request::VmCreate`] would make; nothing is.
    #[serde(rename = "vm.plan")]
    VmPlan {
        /// What it is to be.
        machine: Machine,
        /// Whether it stays.
        keep: bool,
    },
    /// When a VM's console had grown to which length.
    #[serde(rename = "vm.log.times")]
    VmLogTimes {
        /// Its name or a part of its id.
        name: String,
    },
    /// Makes a VM that doesn't run yet.
    #[serde(rename = "vm.create")]
    VmCreate {
        /// What it is to be.
        machine: Machine,
    },
    /// Starts a VM; one that runs stays as it is.
    #[serde(rename = "vm.start")]
    VmStart {
        /// Its name or a part of its id.
        name: String,
        /// How long its agent may take to answer, in milliseconds.
        boot_timeout_ms: Option<u64>,
        /// What is waited for; absent where it is the agent.
        #[serde(default, skip_serializing_if = "WaitFor::is_agent")]
        wait: WaitFor,
        /// Whether it boots, though there may be a template to go on from; absent where not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cold: bool,
    },
    /// Ends a VM in an orderly way; one that doesn't run stays as it is.
    #[serde(rename = "vm.stop")]
    VmStop {
        /// Its name or a part of its id.
        name: String,
        /// After so many milliseconds it is killed.
        timeout_ms: Option<u64>,
    },
    /// Sends a signal to a VM's VMM.
    #[serde(rename = "vm.kill")]
    VmKill {
        /// Its name or a part of its id.
        name: String,
        /// The signal's name.
        signal: String,
    },
    /// Takes a VM and its disk away.
    #[serde(rename = "vm.rm")]
    VmRm {
        /// Its name or a part of its id.
        name: String,
        /// Whether it may run.
        force: bool,
        /// Whether changes of its workspace may be lost.
        #[serde(default)]
        discard_changes: bool,
        /// Whether it is only told what would go; absent where not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
    /// All VMs.
    #[serde(rename = "vm.list")]
    VmList {},
    /// One VM.
    #[serde(rename = "vm.show")]
    VmShow {
        /// Its name or a part of its id.
        name: String,
    },
    /// Hands over a connection to a VM's agent.
    #[serde(rename = "vm.exec")]
    VmExec {
        /// Its name or a part of its id.
        name: String,
        /// Whether nothing is changed in the guest, so that its work tree stays pulled; absent where not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        looks: bool,
    },
    /// The git work tree that was shipped into a VM.
    #[serde(rename = "vm.workspace")]
    VmWorkspace {
        /// Its name or a part of its id.
        name: String,
    },
    /// One was shipped.
    #[serde(rename = "vm.workspace.pushed")]
    VmWorkspacePushed {
        /// Its name or a part of its id.
        name: String,
        /// What, and how.
        pushed: Pushed,
    },
    /// Its changes were fetched.
    #[serde(rename = "vm.workspace.pulled")]
    VmWorkspacePulled {
        /// Its name or a part of its id.
        name: String,
        /// The newest commit that was made of them.
        commit: Option<String>,
    },
    /// What ssh needs to come into a VM.
    #[serde(rename = "vm.ssh")]
    VmSsh {
        /// Its name or a part of its id.
        name: String,
    },
    /// Where ssh's settings for all VMs are.
    #[serde(rename = "ssh.config")]
    SshConfig {},
    /// Hands over a VM's console, open for reading.
    #[serde(rename = "vm.logs")]
    VmLogs {
        /// Its name or a part of its id.
        name: String,
    },
    /// What who makes an image has to know.
    #[serde(rename = "image.about")]
    ImageAbout {},
    /// Makes an image of a root file system in a tar archive, which comes with [`Word::Input`]; or of several
    /// layers.
    #[serde(rename = "image.import")]
    ImageImport {
        /// Its name.
        name: String,
        /// Where it is from, for a person.
        source: String,
        /// How long its disk is.
        size_bytes: Option<u64>,
        /// Whether banger made it of Debian's packages: then what only one machine may have is taken out.
        built: bool,
        /// An OCI image's layers: so many come, the lowest first. None: one archive.
        layers: Option<u8>,
        /// Whether the name is taken from what has it.
        force: bool,
    },
    /// Makes an image of a stopped VM's disk.
    #[serde(rename = "image.promote")]
    ImagePromote {
        /// The VM's name or a part of its id.
        vm: String,
        /// The image's name.
        name: String,
        /// Whether the name is taken from what has it.
        force: bool,
    },
    /// All images.
    #[serde(rename = "image.list")]
    ImageList {},
    /// One image.
    #[serde(rename = "image.show")]
    ImageShow {
        /// Its name or a part of its digest.
        name: String,
    },
    /// Takes an image away.
    #[serde(rename = "image.rm")]
    ImageRm {
        /// Its name or a part of its digest.
        name: String,
        /// Whether VMs may have been made of it.
        force: bool,
        /// Whether it is only told what would go; absent where not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
    /// Makes a kernel of Debian's package.
    #[serde(rename = "kernel.fetch")]
    KernelFetch {
        /// Its name; made of the version where there is none.
        name: Option<String>,
        /// As `uname -r` says it; the release's current one where there is none.
        version: Option<String>,
        /// Whether the name is taken from what has it.
        force: bool,
    },
    /// Makes a kernel of a file, and of an initrd; each comes with [`Word::Input`].
    #[serde(rename = "kernel.import")]
    KernelImport {
        /// Its name; made of the version where there is none.
        name: Option<String>,
        /// Where it is from, for a person.
        source: String,
        /// Whether an initrd comes too.
        with_initrd: bool,
        /// Whether the name is taken from what has it.
        force: bool,
    },
    /// Makes a template for VMs of that machine's image, kernel, memory and CPUs.
    #[serde(rename = "template.build")]
    TemplateBuild {
        /// What they are; nothing else of it counts.
        machine: Machine,
    },
    /// All templates.
    #[serde(rename = "template.list")]
    TemplateList {},
    /// One template.
    #[serde(rename = "template.show")]
    TemplateShow {
        /// A part of its id, or its image's name.
        name: String,
    },
    /// Takes a template away.
    #[serde(rename = "template.rm")]
    TemplateRm {
        /// A part of its id, or its image's name.
        name: String,
        /// Whether it is only told what would go; absent where not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
    /// All kernels.
    #[serde(rename = "kernel.list")]
    KernelList {},
    /// One kernel.
    #[serde(rename = "kernel.show")]
    KernelShow {
        /// Its name or a part of its digest.
        name: String,
    },
    /// Takes a kernel away.
    #[serde(rename = "kernel.rm")]
    KernelRm {
        /// Its name or a part of its digest.
        name: String,
        /// Whether VMs may have been made of it.
        force: bool,
        /// Whether it is only told what would go; absent where not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
}

/// What a start is over with for its caller. The daemon goes on by itself, and keeps why a start failed as the VM's last
/// error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// The agent answers: commands can be run.
    #[default]
    Agent,
    /// The VMM runs: the guest boots.
    Boot,
    /// Nothing but what comes at once: that the VMM runs, or a failure, each where it comes within 0.3 s.
    None,
}

impl WaitFor {
    fn is_agent(&self) -> bool {
        *self == WaitFor::Agent
    }
}

/// What the caller may say after its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Word {
    /// Undo what was begun; the call then ends with an error whose code is `interrupted`.
    Cancel {},
    /// The command in the guest is over.
    Finished {},
    /// A descriptor comes with this line: what the request is to read.
    Input {},
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A stage began or ended.
    Stage(Stage),
    /// A descriptor comes with this line.
    Attached(Attached),
    /// A call to the root helper is over; told where the call asks for it.
    Helper(HelperCall),
    /// The call is over: its result.
    Done(Value),
    /// The call failed.
    Error(Fault),
}

/// A stage of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// `plan`, `wire`, `disk`, `launch`, `boot`, `ready`, `down`, or one of an image's.
    pub name: String,
    /// Whether it began or ended.
    pub state: StageState,
    /// Since the call began, in microseconds.
    pub at_us: u64,
    /// Which VM or image.
    pub about: String,
    /// What came of it, for a person; may be empty.
    #[serde(default)]
    pub note: String,
    /// How long it usually takes, in microseconds, where it begins and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usual_us: Option<u64>,
}

/// A call to the root helper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelperCall {
    /// Its name, as `priv.create_tap`.
    pub method: String,
    /// The id under which the helper's log has it.
    pub op_id: String,
    /// When it began, since the operation did, in microseconds.
    pub at_us: u64,
    /// How long it took, in microseconds.
    pub us: u64,
    /// The code with which it failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// Where a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// It begins.
    Begun,
    /// It goes on, and there is a new note.
    Note,
    /// It is over.
    Ended,
}

/// What is said with a descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// The VM's name.
    pub vm: String,
    /// What the descriptor is.
    pub what: Handed,
    /// `kvm` or `emulation`: how patient to be with the guest.
    pub accel: String,
    /// The git work tree that was shipped into the VM: commands run in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<vm::Workspace>,
}

/// What is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handed {
    /// A connection to the guest's agent, before its HELLO.
    Agent,
    /// The console's file, open for reading, at its beginning.
    Console,
}

/// A failure: what, why, what to do, and the exit status that says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// Stable: `name_taken`.
    pub code: String,
    /// What failed, in a line.
    pub message: Box<str>,
    /// Why.
    pub why: Option<Box<str>>,
    /// What to do, the best first.
    #[serde(default)]
    pub fix: Vec<String>,
    /// The stage in which it failed.
    pub stage: Option<Box<str>>,
    /// The operation's id.
    #[serde(default)]
    pub op_id: Box<str>,
    /// The command's exit status, where the command has none of its own.
    pub exit: u8,
}

/// The result of `version`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's.
    pub bangerd: String,
}

impl Call {
    /// The call as its line says it, without the newline.
    ///
    /// # Errors
    /// None that these types can have.
    pub fn to_line(&self) -> serde_json::Result<String> {
        let mut value = serde_json::to_value(&self.request)?;
        if let Value::Object(map) = &mut value {
            map.insert("op_id".into(), Value::from(self.op_id.as_str()));
            if self.trace {
                map.insert("trace".into(), Value::from(true));
            }
        }
        serde_json::to_string(&value)
    }

    /// Reads a line. An id with other characters than it may have counts as none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> serde_json::Result<Call> {
        let mut map: Map<String, Value> = serde_json::from_slice(line)?;
        let op_id = match map.remove("op_id") {
            Some(Value::String(id)) if is_op_id(&id) => id,
            _ => String::new(),
        };
        let trace = map.remove("trace") == Some(Value::from(true));
        Ok(Call { op_id, trace, request: serde_json::from_value(Value::Object(map))? })
    }
}

fn is_op_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_back() {
        let request = Request::VmRun { machine: Machine::default(), keep: true };
        let call = Call { op_id: "op-1".into(), trace: false, request };
        let line = call.to_line().unwrap();
        assert!(line.contains(r#""op":"vm.run""#) && line.contains(r#""op_id":"op-1""#), "{line}");
        assert_eq!(Call::parse(line.as_bytes()).unwrap(), call);
        let call = Call { trace: true, ..call };
        assert_eq!(Call::parse(call.to_line().unwrap().as_bytes()).unwrap(), call);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for line in [
            "",
            "[]",
            "{}",
            r#"{"op":"vm.explode"}"#,
            r#"{"op":"ping","more":1}"#,
            r#"{"op":"vm.stop"}"#,
            r#"{"op":"vm.run","keep":true,"machine":{"nam":"x"}}"#,
            r#"{"op":"ping"} x"#,
        ] {
            assert!(Call::parse(line.as_bytes()).is_err(), "{line}");
        }
        assert_eq!(Call::parse(br#"{"op":"ping","op_id":"a b"}"#).unwrap().op_id, "");
    }

    #[test]
    fn words_and_events_have_their_spelling() {
        assert_eq!(serde_json::to_string(&Word::Finished {}).unwrap(), r#"{"finished":{}}"#);
        let attached =
            Event::Attached(Attached { vm: "web".into(), what: Handed::Agent, accel: "kvm".into(), workspace: None });
        assert_eq!(
            serde_json::to_string(&attached).unwrap(),
            r#"{"attached":{"vm":"web","what":"agent","accel":"kvm"}}"#
        );
    }
}
