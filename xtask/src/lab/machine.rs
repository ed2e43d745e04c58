//! One QEMU: its command line, what it is handed, and its start.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::children::{self, Bound};
use super::image::Image;
use super::qmp::Qmp;
use super::session::Session;
use crate::console::{Console, Said};
use crate::programs;

pub(super) const QEMU: &str = "qemu-system-x86_64";
/// Lines of QEMU's own that an error shows.
const LAST_LINES: usize = 40;
/// The guest's memory; it takes what the guest has touched.
const MEMORY: &str = "2048M";
/// What the second disk has where nothing was brought, and the size of what is: a saved machine knows its disks' sizes.
pub(super) const SECOND_DISK: u64 = 4 << 30;

/// Whether the guest is to run guests of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nested {
    No,
    Yes,
}

/// Where the guest's memory lies.
pub(super) enum Memory<'a> {
    /// In the process alone.
    Own,
    /// In a file that it writes to.
    Into(&'a Path),
    /// In such a file, as it was when the machine was saved; what is written is its own.
    From(&'a Path),
}

/// The first disk; what is written to the image itself is always thrown away.
pub(super) enum Disk<'a> {
    Image(&'a Path),
    /// A layer over the image, written to.
    Layer(&'a Path),
    /// A layer over the image, kept as it is.
    SavedLayer(&'a Path),
}

/// How it begins.
pub(super) enum Start<'a> {
    Boot { image: &'a Image, initrd: &'a File, tsc_khz: u64 },
    Restore { state: &'a File },
}

/// What one QEMU is made of.
pub(super) struct Parts<'a> {
    pub(super) nested: Nested,
    pub(super) memory: Memory<'a>,
    pub(super) disk: Disk<'a>,
    /// An ext4 image of [`SECOND_DISK`] bytes.
    pub(super) second_disk: Option<&'a File>,
    pub(super) start: Start<'a>,
}

/// A QEMU that runs.
pub(super) struct Machine {
    pub(super) session: Session,
    pub(super) qmp: Qmp,
    console: Console,
    process: Bound,
}

/// The command line's part that is the same in each start; a part of a saved machine's key.
pub(super) fn hardware(nested: Nested) -> Vec<String> {
    let (cpu, cpus) = match nested {
        Nested::No => ("max", "2"),
        Nested::Yes => ("EPYC,+svm,+npt", "1"),
    };
    let words = "-M microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=memory -accel tcg,thread=multi \
                 -nodefaults -no-user-config -display none -no-reboot -device virtio-serial-device,max_ports=2 \
                 -device virtio-blk-device,drive=first -device virtio-blk-device,drive=second -m";
    let words = words.split_whitespace().chain([MEMORY, "-smp", cpus, "-cpu", cpu]);
    words
        .map(str::to_owned)
        .chain(["-device".to_owned(), format!("virtserialport,chardev=lab,name={},nr=1", lab::PORT)])
        .collect()
}

/// What the kernel is told, but for the rate of its clock.
/// An NMI panics, with what each processor does: see [`Machine::looked_at`]. On this machine it counts as one of the bus.
pub(super) const KERNEL_WORDS: &str = "console=ttyS0 panic=-1 quiet loglevel=3 cryptomgr.notests mitigations=off \
                                       random.trust_cpu=on nokaslr systemd.show_status=false panic_print=0x40 \
                                       sysctl.kernel.panic_on_unrecovered_nmi=1";

/// What its processes do and what its services said, for one whose command doesn't end.
const LOOK: &str = "ps -eLo pid,tid,ppid,stat,pcpu,time,wchan:24,comm,args --sort -pcpu | cut -c1-200; \
                    for task in /proc/[0-9]*/task/*; do \
                        case $(cut -d')' -f2 $task/stat) in ' R'*|' D'*) cat $task/comm $task/stack;; esac; \
                    done 2>/dev/null; \
                    journalctl -b -n 60 --no-pager; dmesg | tail -n 20";
/// How long that may take.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// How often its registers are looked at: one that goes round in a loop is seen to.
const LOOKS: usize = 3;
/// How long a panic takes to be told.
const PANIC_TIME: Duration = Duration::from_secs(5);

impl Machine {
    /// Starts one, and speaks with QEMU; what runs in it isn't asked yet.
    pub(super) fn start(parts: &Parts<'_>) -> Result<Self> {
        let (qmp, qmp_theirs) = UnixStream::pair()?;
        let (channel, channel_theirs) = UnixStream::pair()?;
        let (console, console_theirs) = UnixStream::pair()?;
        let console = Console::read(console, channel.try_clone()?);
        let mut keep = vec![qmp_theirs.as_fd(), channel_theirs.as_fd(), console_theirs.as_fd()];
        keep.extend(parts.second_disk.map(AsFd::as_fd));
        keep.push(match &parts.start {
            Start::Boot { initrd, .. } => initrd.as_fd(),
            Start::Restore { state } => state.as_fd(),
        });
        let mut command = command(parts);
        for (id, theirs) in [("qmp", &qmp_theirs), ("lab", &channel_theirs), ("console", &console_theirs)] {
            command.args(["-chardev", &format!("socket,id={id},fd={}", theirs.as_raw_fd())]);
        }
        command.args(["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]);
        let mut errors = unnamed("banger-lab-qemu")?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
        let process = children::spawn(&mut command, &keep)?;
        drop((qmp_theirs, channel_theirs, console_theirs));
        let started = Qmp::greet(qmp).and_then(|mut qmp| {
            if let Memory::Into(_) | Memory::From(_) = parts.memory {
                qmp.memory_is_shared()?;
            }
            if let Start::Restore { state } = &parts.start {
                let uri = format!("fd:{}", state.as_raw_fd());
                qmp.ask("migrate-incoming", serde_json::json!({ "uri": uri }))?;
            }
            Ok(qmp)
        });
        match started {
            Ok(qmp) => Ok(Self { session: Session::new(channel)?, qmp, console, process }),
            Err(e) => {
                drop(process);
                let said = last_lines(&mut errors) + &console.whole().shown();
                Err(e.context(format!("{QEMU} can't be started\n{said}")))
            }
        }
    }

    /// Waits for QEMU's own end.
    pub(super) fn wait(mut self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.process.has_ended() {
            if begun.elapsed() > limit {
                bail!("{QEMU} doesn't end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What it does, where its command's time is up: its processors by QEMU's word, its processes by its own. Behind this it
    /// gets an NMI, so that its kernel's panic tells on the console what each processor was at, and is of no more use.
    pub(super) fn looked_at(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..LOOKS {
            let registers = self.qmp.registers().unwrap_or_else(|e| format!("{e:#}"));
            text += &programs::indented(&registers, usize::MAX);
            text.push('\n');
            std::thread::sleep(Duration::from_millis(100));
        }
        text += &programs::indented(&self.session.looked_at(LOOK, LOOK_LIMIT), usize::MAX);
        match self.qmp.ask("inject-nmi", serde_json::json!({})) {
            Ok(_) => std::thread::sleep(PANIC_TIME),
            Err(e) => text += &format!("\n{e:#}"),
        }
        text
    }

    /// Ends it, for that error, which a panic of its kernel explains.
    pub(super) fn ended_by(self, error: anyhow::Error) -> anyhow::Error {
        let said = self.end();
        if said.panic().is_some() { error.context(said.shown()) } else { error }
    }

    /// Ends it, and gives what its kernel said.
    pub(super) fn end(self) -> Said {
        drop(self.process);
        self.console.whole()
    }
}

/// The command line, but for the sockets; QEMU puts its words in order itself.
fn command(parts: &Parts<'_>) -> Command {
    let mut command = Command::new(QEMU);
    command.args(hardware(parts.nested));
    command.args(["-object", &memory(&parts.memory), "-drive", &first_disk(&parts.disk), "-drive"]);
    command.arg(match parts.second_disk {
        Some(file) => format!("id=second,if=none,format=raw,file={}", by_number(file)),
        None => format!("id=second,if=none,driver=null-co,read-zeroes=on,size={SECOND_DISK}"),
    });
    match &parts.start {
        Start::Boot { image, initrd, tsc_khz } => {
            command.arg("-kernel").arg(&image.kernel).args(["-initrd", &by_number(initrd)]);
            command.args(["-append", &format!("{KERNEL_WORDS} tsc_early_khz={tsc_khz}")]);
        }
        Start::Restore { .. } => {
            command.args(["-incoming", "defer"]);
        }
    }
    command
}

fn memory(memory: &Memory<'_>) -> String {
    let file = |path: &Path, share| {
        format!("memory-backend-file,id=memory,size={MEMORY},mem-path={},share={share}", path.display())
    };
    match memory {
        Memory::Own => format!("memory-backend-ram,id=memory,size={MEMORY}"),
        Memory::Into(path) => file(path, "on"),
        Memory::From(path) => file(path, "off"),
    }
}

fn first_disk(disk: &Disk<'_>) -> String {
    let drive = |path: &Path, rest| format!("id=first,if=none,{rest},file={}", path.display());
    match disk {
        Disk::Image(path) => drive(path, "format=raw,snapshot=on"),
        Disk::Layer(path) => drive(path, "format=qcow2"),
        Disk::SavedLayer(path) => drive(path, "format=qcow2,snapshot=on"),
    }
}

/// A descriptor as a path in the process that inherits it.
pub(super) fn by_number(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A file in memory that goes with its last descriptor.
pub(super) fn unnamed(name: &str) -> Result<File> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).context("no memory for a file")?;
    Ok(File::from(file))
}

fn last_lines(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What can't be read can't be shown; the error that it would explain is told in any case.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    programs::indented(&String::from_utf8_lossy(&bytes), LAST_LINES)
}

/// The rate that the guest is to count its time by: emulation shows it the host's counter.
pub(super) fn tsc_khz() -> Result<u64> {
    let start = sys::tsc::Sample::take();
    std::thread::sleep(Duration::from_millis(20));
    start.khz_since().context("this machine's time stamp counter doesn't run evenly; the lab needs it")
}
