//! The checks.

use super::{Found, State};
use crate::api::client::{Next, begin};
use crate::api::template::Templates;
use crate::api::vm::Machine;
use crate::api::{Call, Request, Word};
use crate::cli::{config, template};
use crate::daemon::names;
use crate::daemon::settings::Settings;
use crate::daemon::vmm::Accel;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::Code;
use wire::client::Error;
use wire::disk::NewSnapshot;
use wire::name::addr::GuestAddr;
use wire::name::dm::DmName;
use wire::name::link::TapName;
use wire::net::{Nat, NewTap, Switch};
use wire::path::{HostPath, Root, Roots};
use wire::probe::{End, Probe};

/// How long a call of the helper's may take here.
const CALL: Duration = Duration::from_secs(20);
/// Less room than this is soon too little: an image is some hundred MiB.
const ROOM: u64 = 2 << 30;
/// The tap that is made for a packet, and gone again.
const TAP: &str = "tap-fc-doctor";
/// The snapshot that is made and gone again.
const SNAPSHOT: &str = "fc-rootfs-doctor";
const HELPER_FIX: &str = "sudo systemctl start bangerd-root     or, without installing anything: banger try -- CMD";

/// Where things are.
pub(super) struct Places<'a> {
    pub(super) daemon: &'a Path,
    pub(super) helper: &'a Path,
    pub(super) state: &'a Path,
}

/// KVM counts when it has run a guest just now.
pub(super) fn kvm() -> Found {
    match sys::kvm::runs_guests() {
        Ok(()) => Found::new(State::Ok, "KVM ran a guest of four instructions"),
        Err(error) => {
            let found = Found::new(State::Warn, "no KVM that runs guests: VMs run in emulation, some ten times slower");
            match error.kind() {
                io::ErrorKind::NotFound => found.why("there is no /dev/kvm"),
                io::ErrorKind::PermissionDenied => found
                    .why("this user may not open /dev/kvm")
                    .fix("sudo usermod -aG kvm \"$USER\"     and log in again"),
                _ => found.why(format!("/dev/kvm is there, but a test guest did not run on it: {error}")),
            }
        }
    }
}

/// A question that has no answer, to the daemon's own server.
pub(super) fn names() -> Found {
    // id 0x6264, recursion desired, one question: "x.vm", A, IN.
    const QUESTION: &[u8] = b"bd\x01\0\0\x01\0\0\0\0\0\0\x01x\x02vm\0\0\x01\0\x01";
    let asked = || -> io::Result<bool> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(names::ADDRESS)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send(QUESTION)?;
        let mut answer = [0; 512];
        let len = socket.recv(&mut answer)?;
        Ok(len >= 12 && answer[..2] == *b"bd" && answer[2] & 0x80 != 0)
    };
    let by_hand = format!("dig @127.0.0.1 -p {} NAME.vm", names::ADDRESS.rsplit(':').next().unwrap_or_default());
    match asked() {
        Ok(true) if Path::new("/run/systemd/resolve/io.systemd.Resolve").exists() => {
            Found::new(State::Ok, "bangerd answers for names in vm, and systemd-resolved is here to ask it")
        }
        Ok(true) => Found::new(State::Skip, format!("no systemd-resolved here; a name works with: {by_hand}")),
        Ok(false) => Found::new(State::Fail, format!("{} is answered by something else", names::ADDRESS)),
        Err(error) => Found::new(State::Fail, format!("no answer on {}", names::ADDRESS))
            .why(error)
            .fix("banger vm list shows addresses, which work without names; bangerd's log says why it does not listen"),
    }
}

impl Places<'_> {
    pub(super) fn helper(&self) -> Found {
        let begun = Instant::now();
        match crate::root::client(self.helper, CALL).list_resources() {
            Ok(_) => Found::new(State::Ok, format!("bangerd-root answers in {:.1} ms", ms(begun))),
            Err(error) => {
                let found = format!("banger's root helper does not answer on {}", self.helper.display());
                let found = Found::new(State::Fail, found).why(&error);
                match error {
                    Error::Refused(refused) if refused.code == Some(Code::Unauthorized) => {
                        found.fix("sudo banger helper init --owner \"$USER\"     makes it yours")
                    }
                    _ => found.fix(HELPER_FIX),
                }
            }
        }
    }

    pub(super) fn daemon(&self) -> Found {
        let begun = Instant::now();
        let call = Call { op_id: String::new(), trace: false, request: Request::Ping {} };
        match crate::api::client::ask::<serde_json::Value>(self.daemon, &call, |_| {}) {
            Ok(_) => Found::new(State::Ok, format!("bangerd answers in {:.1} ms", ms(begun))),
            Err(fault) => Found::of(fault),
        }
    }

    /// Whatever the helper would start.
    pub(super) fn vmm(&self) -> Found {
        let helper = crate::root::client(self.helper, CALL);
        let (accel, wanted) = (config().accel, config().firecracker_bin.as_deref());
        let kvm = accel != Some(Accel::Emulation) && sys::kvm::runs_guests().is_ok();
        if accel == Some(Accel::Kvm) && !kvm {
            return Found::new(State::Fail, "accel = \"kvm\" is configured, and KVM runs no guests here")
                .fix("accel = \"auto\" in the configuration, and bangerd restarted: VMs are emulated then");
        }
        let firecracker = helper.resolve_firecracker_binary(wanted.unwrap_or("firecracker"));
        if let (true, Ok(path)) = (kvm, &firecracker) {
            return Found::new(State::Ok, format!("firecracker: {path}, on KVM"));
        }
        let path = match helper.resolve_firecracker_binary("banger-qemu") {
            Ok(path) => path,
            Err(error) => {
                return Found::new(State::Fail, "this machine can't start a VM: no VMM where the helper looks for one")
                    .why(error)
                    .fix(
                        "put banger-qemu where bangerd-root is installed; root.toml's program_dirs names more places",
                    );
            }
        };
        match qemu() {
            Some(version) => Found::new(State::Ok, format!("{path}, over {version}")),
            None => Found::new(State::Fail, "this machine can't start a VM: no QEMU")
                .why("qemu-system-x86_64 --version can't be run")
                .fix("sudo apt-get install --no-install-recommends qemu-system-x86"),
        }
    }

    pub(super) fn disk(&self) -> Found {
        let room = match rustix::fs::statvfs(self.state) {
            Ok(facts) => facts.f_bavail * facts.f_frsize,
            Err(errno) => {
                return Found::new(State::Fail, format!("{} can't be looked at", self.state.display()))
                    .why(io::Error::from(errno))
                    .fix("sudo banger helper init --owner \"$USER\"     makes the directories");
            }
        };
        let free = format!("{:.1}G free in {}", room as f64 / f64::from(1 << 30), self.state.display());
        let how = match (self.snapshot(), self.reflink()) {
            (Ok(()), _) => "a snapshot was made and taken away: VMs share their image by device-mapper".to_owned(),
            (Err(_), Ok(())) => "no device-mapper snapshots here: VMs share their image by reflinks".to_owned(),
            (Err(no_snapshot), Err(_)) => {
                let found = format!("neither snapshots nor reflinks here: each VM gets a copy of its image; {free}");
                return Found::new(if room < ROOM { State::Fail } else { State::Warn }, found)
                    .why(no_snapshot)
                    .fix("sudo modprobe dm_snapshot     or a state directory on btrfs or xfs");
            }
        };
        match room < ROOM {
            true => Found::new(State::Warn, format!("{how}; only {free}")).fix("banger vm prune | banger image rm OLD"),
            false => Found::new(State::Ok, format!("{how}; {free}")),
        }
    }

    /// What there is that VMs go on from, of what there may be.
    pub(super) fn templates(&self) -> Found {
        let call = Call { op_id: String::new(), trace: false, request: Request::TemplateList {} };
        match crate::api::client::ask::<Templates>(self.daemon, &call, |_| {}) {
            Ok(all) => {
                let how = if all.unasked { "the first run of an image leaves one" } else { "none is made unasked" };
                Found::new(State::Ok, format!("{}; {how}", template::total(&all)))
            }
            Err(fault) => Found::of(fault),
        }
    }

    /// Makes a snapshot of a small file, and takes it away.
    fn snapshot(&self) -> Result<(), String> {
        let (base, cow) = (Scratch::file(self.state, "base", 4 << 20)?, Scratch::hole(self.state, "cow", 4 << 20)?);
        let roots = Roots {
            state: self.state.to_string_lossy().into_owned(),
            runtime: crate::daemon::settings::RUNTIME.to_owned(),
        };
        let path = |scratch: &Scratch| {
            HostPath::new(&scratch.0.to_string_lossy(), &[Root::State], &roots, Code::InvalidPath, "path")
                .map_err(|refusal| refusal.to_string())
        };
        let name = DmName::new(SNAPSHOT).map_err(|error| error.to_string())?;
        let helper = crate::root::client(self.helper, CALL);
        let new = NewSnapshot { rootfs: path(&base)?, cow: path(&cow)?, name };
        let handles = helper.create_dm_snapshot(&new).map_err(|error| error.to_string())?;
        helper.cleanup_dm_snapshot(&handles).map_err(|error| error.to_string())
    }

    fn reflink(&self) -> Result<(), String> {
        let (from, to) = (Scratch::file(self.state, "from", 1 << 16)?, Scratch::file(self.state, "to", 0)?);
        let from = File::open(&from.0).map_err(|error| error.to_string())?;
        let to = OpenOptions::new().write(true).open(&to.0).map_err(|error| error.to_string())?;
        rustix::fs::ioctl_ficlone(&to, &from).map_err(|errno| errno.to_string())
    }

    /// A packet as a guest's, from a tap that is made for it.
    pub(super) fn way_out(&self) -> Found {
        let helper = crate::root::client(self.helper, CALL);
        let sent = || -> Result<_, String> {
            let bridge = Settings::bridge(config()).map_err(|fault| fault.message.to_string())?;
            let last = Ipv4Addr::from(u32::from(bridge.addr.broadcast()) - 1);
            let tap = TapName::new(TAP).map_err(|error| error.to_string())?;
            let guest = GuestAddr::new(&last.to_string()).map_err(|error| error.to_string())?;
            helper.create_tap(&NewTap { bridge, tap: tap.clone() }).map_err(|error| error.to_string())?;
            let nat = |switch| helper.ensure_nat(&Nat { guest, tap: tap.clone(), switch });
            let probed = nat(Switch::On).and_then(|()| helper.probe_network(&Probe { guest, tap: tap.clone() }));
            // Whatever came of it, both go again.
            let (closed, deleted) = (nat(Switch::Off), helper.delete_tap(&tap));
            let probed = probed.map_err(|error| error.to_string())?;
            closed.and(deleted).map_err(|error| error.to_string())?;
            Ok(probed)
        };
        let probed = match sent() {
            Ok(probed) => probed,
            Err(why) => return Found::new(State::Fail, "no packet could be sent from a guest's place").why(why),
        };
        if probed.end == End::Open {
            return Found::new(
                State::Ok,
                format!("a packet from a guest's place was about to leave by {}", probed.uplink),
            );
        }
        let what = match (&probed.by, probed.end) {
            (Some(by), _) => format!(
                "a packet from a guest's place ends at table {} {}, chain {}, handle {}: {}",
                by.family, by.table, by.chain, by.handle, by.rule
            ),
            (None, End::NoRoute) => "this machine has no way out itself".to_owned(),
            (None, _) => "a packet from a guest's place does not leave".to_owned(),
        };
        let found = Found::new(State::Fail, what).why(format!("guests have no network; {}", probed.why));
        match &probed.by {
            Some(by) if by.table != "banger" => found.fix(format!(
                "sudo nft -a list chain {} {} {}     shows the rule, which is its administrator's",
                by.family, by.table, by.chain
            )),
            _ => found,
        }
    }

    /// A VM to its agent's word, and away again.
    pub(super) fn guest(&self) -> Found {
        let request = Request::VmRun { machine: Machine::default(), keep: false };
        let begun = Instant::now();
        let mut answered = None;
        let ran = begin(self.daemon, &Call { op_id: String::new(), trace: false, request }).and_then(|mut running| {
            loop {
                match running.event()? {
                    Next::Attached(..) => {
                        answered = Some(begun.elapsed());
                        if let Ok(voice) = running.voice() {
                            voice.say(Word::Finished {});
                        }
                    }
                    Next::Done(_) => return Ok(()),
                    Next::Stage(_) => {}
                }
            }
        });
        match (ran, answered) {
            (Ok(()), Some(time)) => Found::new(
                State::Ok,
                format!("a guest started, said hello after {:.1} s, and is gone", time.as_secs_f64()),
            ),
            (Ok(()), None) => Found::new(State::Fail, "a guest started and could not be spoken to"),
            (Err(fault), _) if matches!(fault.code.as_str(), "no_image" | "no_such_image") => {
                Found::new(State::Skip, "no guest was started: there is no image yet")
                    .fix("banger image build debian-12")
            }
            (Err(fault), _) => Found::of(fault),
        }
    }
}

/// What QEMU says of itself.
fn qemu() -> Option<String> {
    let said = std::process::Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout);
    let line = text.lines().next().filter(|_| said.status.success())?;
    Some(line.replace("emulator version ", ""))
}

/// A file for a check, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    /// One with something in it to be shared.
    fn file(state: &Path, name: &str, bytes: u64) -> Result<Scratch, String> {
        let scratch = Scratch::hole(state, name, bytes)?;
        let content = vec![1; bytes.min(1 << 16) as usize];
        let written = OpenOptions::new().write(true).open(&scratch.0).and_then(|mut file| file.write_all(&content));
        written.map_err(|error| format!("{}: {error}", scratch.0.display()))?;
        Ok(scratch)
    }

    /// One of zeros.
    fn hole(state: &Path, name: &str, bytes: u64) -> Result<Scratch, String> {
        let path = state.join(format!(".doctor-{}-{name}", std::process::id()));
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.and_then(|file| file.set_len(bytes)).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
