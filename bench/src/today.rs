//! Against a root helper as it is run today: the stand-in of `bench/today/main.go`, which runs a program for each step.
//! The same client asks both for the same, with a connection a call, and waits for the whole reply.

use crate::by_hand::PROGRAM;
use crate::launch::{self, TAP};
use crate::nat::Caller;
use crate::stats::{Times, compare, head};
use crate::world::{self, Helper, OWNER, SOCKET, beside, run};
use anyhow::{Context, Result, ensure};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::client::Client;
use wire::code::Code;
use wire::image::{Image, NewFile, Read, Write};
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::guest_path::GuestPath;
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};
use wire::path::{HostPath, ProgramPath, Root, Roots};
use wire::vm::{Launch, Pid};

const STAND_IN: &str = "/run/today.sock";

/// Calls of the one, then of the other, and so on: each finds its own caches warm, and both see the same disturbances.
/// The first of a block, which finds the other's, is not counted.
const BLOCK: u8 = 10;
/// The same where a call takes long.
const SHORT: u8 = 3;
/// Processes beside the VM: a machine has some.
const OTHERS: usize = 300;

/// Who is asked, and what is its.
struct Side {
    client: Caller,
    name: &'static str,
    /// Third byte of its guests' addresses.
    net: u8,
}

impl Side {
    fn bridge(&self, end: &str) -> Result<Bridge> {
        let name = BridgeName::new(&format!("br-fc-{}{end}", self.name))?;
        let net = self.net + u8::from(!end.is_empty());
        Ok(Bridge { name, addr: BridgeAddr::new(&format!("172.24.{net}.1"), "24")? })
    }

    fn tap(&self, nth: u8) -> Result<TapName> {
        Ok(TapName::new(&format!("tap-fc-{}{nth}", self.name))?)
    }

    fn add_tap(&self, nth: u8) -> Result<()> {
        Ok(self.client.create_tap(&NewTap { bridge: self.bridge("")?, tap: self.tap(nth)? })?)
    }

    fn nat(&self, nth: u8, switch: Switch) -> Result<()> {
        let guest = GuestAddr::new(&format!("172.24.{}.{}", self.net, nth + 2))?;
        Ok(self.client.ensure_nat(&Nat { guest, tap: self.tap(nth)?, switch })?)
    }

    fn image(&self) -> Result<Image> {
        Ok(Image::new(&self.image_path(), &roots(), Code::BadParams, "image_path")?)
    }

    fn image_path(&self) -> String {
        format!("/var/lib/banger/{}.ext4", self.name)
    }

    /// Writes so many files of so many bytes, other ones each time.
    fn write(&self, times: &mut Times, files: &[(String, usize)], nth: u8) -> Result<()> {
        let new = |(path, length): &(String, usize)| -> Result<NewFile> {
            Ok(NewFile { path: GuestPath::new(path)?, data: vec![b'a' + nth; *length], mode: 0o644 })
        };
        let asked = Write { image: self.image()?, files: files.iter().map(new).collect::<Result<_>>()? };
        Ok(times.take(|| self.client.write_ext4_files(asked))?)
    }

    /// Reads the file that [`Side::write`] wrote at last.
    fn read(&self, times: &mut Times, (path, length): &(String, usize)) -> Result<()> {
        let asked = Read { image: self.image()?, path: GuestPath::new(path)? };
        let data = times.take(|| self.client.read_ext4_file(&asked))?;
        ensure!(data.len() == *length, "{} has {} bytes by {}", path, data.len(), self.name);
        Ok(())
    }

    fn socket(&self) -> String {
        format!("/run/banger/{}.sock", self.name)
    }
}

fn roots() -> Roots {
    Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() }
}

/// What is measured: one call, timed, with what must be before and after it.
type Act<'a> = Box<dyn FnMut(&Side, u8, &mut Times) -> Result<()> + 'a>;

/// A line of the table.
struct Row<'a> {
    what: &'static str,
    /// The programs that the stand-in runs for it.
    against: &'static str,
    block: u8,
    act: Act<'a>,
    times: [Times; 2],
}

fn row<'a>(
    what: &'static str,
    against: &'static str,
    block: u8,
    act: impl FnMut(&Side, u8, &mut Times) -> Result<()> + 'a,
) -> Row<'a> {
    Row { what, against, block, act: Box::new(act), times: Default::default() }
}

/// Measures rows in their order, again and again: a row may leave what the next one needs.
fn table(title: &str, sides: &[Side; 2], mut rows: Vec<Row<'_>>, rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        for row in &mut rows {
            for (side, times) in sides.iter().zip(&mut row.times) {
                for nth in 0..row.block {
                    let counted = if nth == 0 { &mut Times::default() } else { &mut *times };
                    (row.act)(side, nth, counted).with_context(|| format!("{}, by {}", row.what, side.name))?;
                }
            }
        }
    }
    head(title);
    for Row { what, against, times: [ours, theirs], .. } in &rows {
        compare(what, ours, theirs, against);
    }
    Ok(())
}

/// The stand-in, ended when this is dropped.
struct StandIn(Child);

impl StandIn {
    fn start(program: &Path) -> Result<StandIn> {
        let mut command = Command::new(program);
        // Its files are in memory: that is the best that can be for it.
        command.args([STAND_IN, &OWNER.to_string()]).env("TMPDIR", "/run").stdin(Stdio::null());
        let mut started = StandIn(command.spawn()?);
        world::connects(STAND_IN, &mut started.0)?;
        Ok(started)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures all of it, or says why not.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    let Ok(program) = beside("bench-today") else {
        println!("\nnot measured: the existing helper's stand-in; without Go it is not built");
        return Ok(());
    };
    let _stand_in = StandIn::start(&program)?;
    launch::set_up()?;
    let sides = [
        Side { client: Client::new(|| UnixStream::connect(SOCKET)), name: "o", net: 0 },
        Side { client: Client::new(|| UnixStream::connect(STAND_IN)), name: "t", net: 2 },
    ];
    {
        let _helper = Helper::start(None)?;
        network(&sides, rounds)?;
        processes(&sides, rounds)?;
    }
    // Reads and writes of small files are mostly the start of a worker.
    let waits = "/run/waits.toml";
    fs::write(waits, "waiting_worker = true\n")?;
    world::on_disk_and_in_memory(|place| {
        images(place, None, &sides, rounds)?;
        images(&format!("{place}, a worker waits (`waiting_worker`)"), Some(waits), &sides, rounds)
    })
}

fn network(sides: &[Side; 2], rounds: usize) -> Result<()> {
    for side in sides {
        side.client.ensure_bridge(&side.bridge("")?)?;
        // Another guest keeps tables and rules there.
        side.add_tap(BLOCK)?;
        side.nat(BLOCK, Switch::On)?;
    }
    let nothing = RawValue::from_string(r#"{"bridge_name":""}"#.into())?;
    let rows = vec![
        row("an empty method", "none", BLOCK * 5, |side, _, times| {
            times.take(|| side.client.call_raw("priv.clear_resolver_routing", &nothing))?;
            Ok(())
        }),
        row("ensure_bridge, new", "4 `ip`", BLOCK, |side, _, times| {
            let bridge = side.bridge("-n")?;
            times.take(|| side.client.ensure_bridge(&bridge))?;
            run(&format!("ip link del {}", bridge.name))
        }),
        row("ensure_bridge, there already", "2 `ip`", BLOCK, |side, _, times| {
            let bridge = side.bridge("")?;
            Ok(times.take(|| side.client.ensure_bridge(&bridge))?)
        }),
        row("create_tap", "5 `ip`", BLOCK, |side, nth, times| times.take(|| side.add_tap(nth))),
        row("ensure_nat on, new guest", "`ip`, `sysctl`, 6 `iptables`", BLOCK, |side, nth, times| {
            times.take(|| side.nat(nth, Switch::On))
        }),
        row("ensure_nat on, there already", "`ip`, `sysctl`, 3 `iptables`", BLOCK, |side, nth, times| {
            times.take(|| side.nat(nth, Switch::On))
        }),
        row("ensure_nat off", "`ip`, 6 `iptables`", BLOCK, |side, nth, times| {
            times.take(|| side.nat(nth, Switch::Off))
        }),
        row("delete_tap", "`ip`", BLOCK, |side, nth, times| {
            let tap = side.tap(nth)?;
            Ok(times.take(|| side.client.delete_tap(&tap))?)
        }),
    ];
    table("Against the existing helper (stand-in): network", sides, rows, rounds)?;
    for side in sides {
        side.nat(BLOCK, Switch::Off)?;
        side.client.delete_tap(&side.tap(BLOCK)?)?;
        run(&format!("ip link del {}", side.bridge("")?.name))?;
    }
    Ok(())
}

/// VMs and sockets. The VM is one and the same for both: the helper starts it, and either finds and ends it.
fn processes(sides: &[Side; 2], rounds: usize) -> Result<()> {
    let client = &sides[0].client;
    let bridge = Bridge { name: BridgeName::new("br-fc")?, addr: BridgeAddr::new("172.16.0.1", "24")? };
    client.create_tap(&NewTap { bridge, tap: TapName::new(TAP)? })?;
    let mut asked = launch::request(false)?;
    // The stand-in takes for a VMM what has this name.
    asked.program = ProgramPath::new(PROGRAM)?;
    let socket = asked.socket.as_str();
    let vm = Cell::new(client.launch_firecracker(&asked)?);
    let _sockets = sides.each_ref().map(|side| UnixListener::bind(side.socket()));
    let _others = Others::start()?;
    let rows = vec![
        row("find_firecracker_pid, 300 other processes", "`pgrep`", BLOCK, |side, _, times| {
            let pid = times.take(|| side.client.find_firecracker_pid(socket))?;
            ensure!(pid == vm.get(), "{pid} is found, and {} is the VM", vm.get());
            Ok(())
        }),
        row("process_running", "none", BLOCK * 5, |side, _, times| {
            ensure!(times.take(|| side.client.process_running(vm.get(), socket))?, "the VM is not seen");
            Ok(())
        }),
        row("ensure_socket_access", "none", BLOCK * 5, |side, _, times| {
            let path = HostPath::new(&side.socket(), &[Root::Runtime], &roots(), Code::InvalidPath, "socket_path")?;
            Ok(times.take(|| side.client.ensure_socket_access(&path, "a socket"))?)
        }),
        row("kill_process, until it is gone (ours: and cleared away)", "`kill`", SHORT, |side, _, times| {
            times.take(|| -> Result<()> {
                side.client.kill_process(vm.get())?;
                // The helper's answer means that; the other's does not.
                while runs(vm.get()) {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Ok(())
            })?;
            vm.set(next(client, &asked)?);
            Ok(())
        }),
    ];
    table("Against the existing helper (stand-in): VMs and sockets", sides, rows, rounds)?;
    client.kill_process(vm.get())?;
    launch::tap_is_free()?;
    run("ip link del br-fc")
}

/// Launches the next one. The helper hears a moment later of an end that it did not cause.
fn next(client: &Caller, asked: &Launch) -> Result<Pid> {
    launch::tap_is_free()?;
    let begin = Instant::now();
    loop {
        match client.launch_firecracker(asked) {
            Err(_) if begin.elapsed() < launch::PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            other => return Ok(other?),
        }
    }
}

/// Whether it has not ended yet. What nobody asked for its status has.
fn runs(Pid(pid): Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
}

/// Processes that wait, ended when this is dropped.
struct Others(Vec<Child>);

impl Others {
    fn start() -> Result<Others> {
        let mut others = Others(Vec::new());
        for _ in 0..OTHERS {
            others.0.push(Command::new("sleep").arg("infinity").spawn()?);
        }
        Ok(others)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for other in &mut self.0 {
            let _ = other.kill();
            let _ = other.wait();
        }
    }
}

fn images(title: &str, config: Option<&str>, sides: &[Side; 2], rounds: usize) -> Result<()> {
    let _helper = Helper::start(config)?;
    for side in sides {
        let path = side.image_path();
        run(&format!("mkfs.ext4 -q -F {path} 512M"))?;
        chown(path, Some(OWNER), Some(OWNER))?;
    }
    let small = ("/etc/hostname".to_owned(), 1000);
    let big = ("/opt/big".to_owned(), 10 << 20);
    let ten: Vec<_> = (0..10).map(|nth| (format!("/etc/file{nth}"), 1000)).collect();
    let rows = vec![
        row("write_ext4_files, one small file", "`e2rm`, `e2cp`, `debugfs`", BLOCK, |side, nth, times| {
            side.write(times, std::slice::from_ref(&small), nth)
        }),
        row("write_ext4_files, ten small files", "30 programs", SHORT, |side, nth, times| side.write(times, &ten, nth)),
        row("write_ext4_files, 10 MiB", "`e2rm`, `e2cp`, `debugfs`", SHORT, |side, nth, times| {
            side.write(times, std::slice::from_ref(&big), nth)
        }),
        row("read_ext4_file, a small file", "`debugfs`", BLOCK, |side, _, times| side.read(times, &small)),
        row("read_ext4_file, 10 MiB", "`debugfs`", SHORT, |side, _, times| side.read(times, &big)),
    ];
    let title = format!("Against the existing helper (stand-in): files in images, {title}");
    table(&title, sides, rows, rounds)?;
    // Theirs may be broken: nothing of it is whole or not at all.
    run(&format!("e2fsck -fn {}", sides[0].image_path())).context("the image is broken")
}
