//! A VM as the daemon is asked for one, and as it shows one: the object of `vm list --json` and `vm show --json`.
//! Fields are only ever added; what is unknown is `null`, never absent. What an older bangerd doesn't know, and so leaves
//! out, is read as empty.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a new VM is to be; `None` and empty mean the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// A DNS label.
    pub name: Option<String>,
    /// An image's name.
    pub image: Option<String>,
    /// A kernel's name.
    pub kernel: Option<String>,
    /// 1 to 32.
    pub cpus: Option<u8>,
    /// In MiB.
    pub memory_mib: Option<u64>,
    /// How long its disk is, in MiB: at least as long as the image.
    pub disk_mib: Option<u64>,
    /// No way out of the bridge.
    pub no_nat: bool,
    /// Ports of the guest's that are listened for here while it runs.
    pub ports: Vec<Port>,
    /// The image's own init is to be the guest's first process.
    pub init: bool,
    /// How long the agent may take to answer, in milliseconds.
    pub boot_timeout_ms: Option<u64>,
    /// Have the guest tell on its console when it reached what; `boot`'s note then says so.
    pub stages: bool,
    /// Boot it, though there may be a template.
    pub cold: bool,
}

/// A port of a guest's on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Of this machine.
    pub address: IpAddr,
    /// There; 0: a free one.
    pub port: u16,
    /// In the guest.
    pub guest: u16,
}

/// The result of `vm.list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vms {
    /// By name.
    pub vms: Vec<Vm>,
}

/// The result of what changes one VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Changed {
    /// How it is now; `None` where it is gone.
    pub vm: Option<Vm>,
    /// Whether something was to be done.
    pub changed: bool,
    /// How long that took, in milliseconds.
    pub ms: u64,
    /// What a person should know: that it had to be killed, that something could not be taken away.
    pub warnings: Vec<String>,
    /// What the disk has more without it, of one that went or would go.
    pub freed_bytes: u64,
}

/// The result of `vm.plan`: a VM as it would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Plan {
    /// Its name; one that is made up now may be another when it is made.
    pub name: String,
    /// Whether it stays when its command is over.
    pub keep: bool,
    /// What its disk would be made from.
    pub image: Image,
    /// Its kernel's name.
    pub kernel: String,
    /// Whether the image's own init would be its first process.
    pub init: bool,
    /// vCPUs.
    pub cpus: u8,
    /// Memory.
    pub memory_bytes: u64,
    /// The disk; `method` is the one that is tried first.
    pub disk: Disk,
    /// Its network.
    pub network: Network,
    /// What would run it: `firecracker` or `banger-qemu`.
    pub vmm: String,
    /// `kvm` or `emulation`.
    pub accel: String,
    /// The template that it would go on from; `null` where it would boot.
    pub template: Option<String>,
    /// Why it would boot.
    pub why: Option<String>,
}

/// The result of `vm.log.times`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogTimes {
    /// The console's length in bytes, and when it was seen to be so long, in milliseconds since 1970; the earliest first.
    pub times: Vec<(u64, u64)>,
}

/// A VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// 12 hex digits.
    pub id: String,
    /// `planned`, `starting`, `running`, `stopping`, `stopped`, `failed` or `lost`.
    pub state: String,
    /// What its disk was made from.
    pub image: Image,
    /// Its kernel's name.
    pub kernel: String,
    /// Whether the image's own init is its first process.
    pub init: bool,
    /// vCPUs.
    pub cpus: u8,
    /// Memory.
    pub memory_bytes: u64,
    /// Its disk.
    pub disk: Disk,
    /// Its network.
    pub network: Network,
    /// What runs it; `null` where it doesn't run.
    pub vmm: Option<Vmm>,
    /// Its agent.
    pub agent: Agent,
    /// The git work tree that was shipped into it; `null` where none was.
    pub workspace: Option<Workspace>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// From the beginning of its last start until its agent answered.
    pub ready_ms: Option<u64>,
    /// Why it failed.
    pub last_error: Option<super::Fault>,
}

/// A git work tree that is shipped into a VM, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pushed {
    /// The tree's top on this machine.
    pub host: String,
    /// Its directory in the guest.
    pub guest: String,
    /// The commit that it stood on.
    pub commit: String,
    /// The branch in the guest; `null` where none is checked out.
    pub branch: Option<String>,
    /// Whether files that git doesn't know were shipped too.
    pub include_untracked: bool,
    /// Whether the guest has all of the history.
    pub full_history: bool,
    /// Whether the files have no permission to be written.
    pub readonly: bool,
}

/// A work tree that was shipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workspace {
    /// What, and how.
    #[serde(flatten)]
    pub pushed: Pushed,
    /// RFC 3339, UTC.
    pub pushed_at: String,
    /// RFC 3339, UTC; `null` before the first pull.
    pub pulled_at: Option<String>,
    /// The newest commit that a pull made.
    pub pulled_commit: Option<String>,
    /// Whether commands have run since the last push or pull, so that there may be changes.
    pub unpulled: bool,
}

/// The result of `vm.workspace` and what changes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkspaceAt {
    /// The VM's name.
    pub vm: String,
    /// The directory of what belongs to it; it goes with the VM.
    pub dir: String,
    /// The VM's state.
    pub state: String,
    /// What was shipped.
    pub workspace: Option<Workspace>,
}

/// An image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// `sha256:` and 64 hex digits; `null` where it was given as a file.
    pub digest: Option<String>,
}

/// A VM's disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Disk {
    /// What the guest sees.
    pub size_bytes: u64,
    /// What it takes on the host's.
    pub used_bytes: Option<u64>,
    /// `dm-snapshot`, `reflink`, `copy` or `layer`; `null` before it is made.
    pub method: Option<String>,
}

/// A VM's network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Network {
    /// Its address.
    pub ip: String,
    /// Its name in DNS; `null` where none is answered for.
    pub dns: Option<String>,
    /// Its interface's address; `null` where the VMM has not told.
    pub mac: Option<String>,
    /// Whether it has a way out.
    pub nat: bool,
    /// Its ports that are listened for on this machine while it runs.
    pub published: Vec<Published>,
}

/// A port of a VM's on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Published {
    /// The address here.
    pub address: IpAddr,
    /// The port here.
    pub port: u16,
    /// The port in the VM.
    pub guest_port: u16,
    /// Whether it is listened for now.
    pub open: bool,
}

/// What runs a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vmm {
    /// `firecracker` or `banger-qemu`.
    pub program: String,
    /// Its version; `null` where it is not known.
    pub version: Option<String>,
    /// `kvm` or `emulation`.
    pub accel: String,
    /// Its process.
    pub pid: i32,
}

/// A VM's agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Agent {
    /// `ready`, `silent` or `none`.
    pub state: String,
    /// Its version, as it said.
    pub version: Option<String>,
    /// The protocol's version that is spoken with it.
    pub protocol: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json, to_value};

    #[test]
    fn what_an_older_bangerd_leaves_out_is_empty() {
        let old = json!({"name": "web", "id": "7f3a9c21e4b0", "state": "running", "network": {"ip": "172.16.0.2"}});
        let vms: Vms = from_value(json!({"vms": [old]})).unwrap();
        let vm = &vms.vms[0];
        assert_eq!((vm.name.as_str(), vm.network.ip.as_str()), ("web", "172.16.0.2"));
        assert!(vm.network.published.is_empty() && !vm.init && vm.ready_ms.is_none());
        let written = to_value(vm).unwrap();
        assert!(written["ready_ms"].is_null() && written["network"]["published"] == json!([]), "{written}");
    }

    #[test]
    fn what_was_pushed_is_of_one_form_by_itself_and_in_a_workspace() {
        let mut pushed = json!({"host": "/home/o/p", "guest": "/root/p", "commit": "c", "branch": null,
            "include_untracked": true, "full_history": false, "readonly": false});
        let mut workspace = pushed.clone();
        let rest = json!({"pushed_at": "t", "pulled_at": null, "pulled_commit": null, "unpulled": true});
        workspace.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let read: Workspace = from_value(workspace.clone()).unwrap();
        assert_eq!(to_value(&read).unwrap(), workspace);
        assert_eq!(read.pushed, from_value(pushed.clone()).unwrap());
        pushed["extra"] = Value::Null;
        assert!(from_value::<Pushed>(pushed).is_err(), "a request with what nobody knows");
    }
}
