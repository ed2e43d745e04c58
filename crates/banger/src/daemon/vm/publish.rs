//! Ports of guests on this machine: listened for while a VM runs, each connection going on to a port of the guest's
//! through its agent, without its network. Whoever reaches the address here reaches the port there.
//!
//! A port is taken before anything of a VM is made, and held until it runs; then a thread has it, until the VM has ended.

use super::phases::Ready;
use super::places::Places;
use crate::api::Fault;
use crate::api::vm::Port;
use crate::daemon::error::exit;
use crate::daemon::store::ports;
use crate::daemon::vmm::Accel;
use crate::daemon::{Daemon, guest, log};
use agent::host::{self, Limits};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sys::pidfd::{self, PidFd};

/// Ports of one VM.
const MOST: usize = 64;
/// Connections of one VM at once: some of those that its agent has are left for commands.
const MAX_CONNECTIONS: usize = 24;
/// A thread whose VM has ended lets its ports go within this time.
const LET_GO: Duration = Duration::from_secs(2);
/// How long nothing is accepted after an accept that failed: no descriptor may be left for now.
const BREATH: Duration = Duration::from_millis(100);

/// A place here that is listened at, and where it leads.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: TcpListener,
    pub(crate) port: Port,
}

/// Which ports are listened for, by VM's id.
#[derive(Debug, Default)]
pub struct Published {
    vms: Mutex<HashMap<String, Taken>>,
    changed: Condvar,
}

#[derive(Debug)]
enum Taken {
    /// Until the VM runs.
    Held(Vec<Listening>),
    /// By a thread, while it runs.
    Open(Vec<Port>),
}

impl Published {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Taken>> {
        // Each change is one statement: a thread that panicked left none half made.
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds them until the VM runs, or is down again.
    pub(crate) fn hold(&self, id: &str, listening: Vec<Listening>) {
        if !listening.is_empty() {
            self.lock().insert(id.to_owned(), Taken::Held(listening));
        }
    }

    /// Lets go what is held for a VM that is down; what a thread still has goes with the process that it watches.
    pub(crate) fn let_go(&self, id: &str) {
        let mut vms = self.lock();
        if matches!(vms.get(id), Some(Taken::Held(_))) {
            vms.remove(id);
        }
        let is_open = |vms: &mut HashMap<String, Taken>| vms.contains_key(id);
        drop(self.changed.wait_timeout_while(vms, LET_GO, is_open));
    }

    /// What is listened for.
    pub(crate) fn open(&self, id: &str) -> Vec<Port> {
        match self.lock().get(id) {
            Some(Taken::Open(ports)) => ports.clone(),
            _ => Vec::new(),
        }
    }

    fn is_held(&self, id: &str) -> bool {
        matches!(self.lock().get(id), Some(Taken::Held(_)))
    }

    /// What was held, to be listened for by a thread.
    fn take(&self, id: &str) -> Option<Vec<Listening>> {
        let mut vms = self.lock();
        match vms.remove(id) {
            Some(Taken::Held(listening)) => Some(listening),
            Some(open) => {
                vms.insert(id.to_owned(), open);
                None
            }
            None => None,
        }
    }
}

/// A thread's entry, until it is dropped.
struct Open<'a> {
    published: &'a Published,
    id: &'a str,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.published.lock().remove(self.id);
        self.published.changed.notify_all();
    }
}

/// Takes ports of this machine. Port 0 becomes a free one, which is the VM's from then on.
///
/// # Errors
/// `port_taken`, `listen`, `bad_ports`; then none is taken.
pub(crate) fn take(ports: &[Port]) -> Result<Vec<Listening>, Fault> {
    if ports.len() > MOST || ports.iter().any(|port| port.guest == 0) {
        let message = format!("at most {MOST} ports of a VM can be published, 1 to 65535 in the guest");
        return Err(Fault::new("bad_ports", exit::USAGE, message));
    }
    ports.iter().map(listen).collect()
}

fn listen(port: &Port) -> Result<Listening, Fault> {
    let at = SocketAddr::new(port.address, port.port);
    let listening = || {
        let listener = TcpListener::bind(at)?;
        // Who connects and is gone at once keeps nobody waiting.
        listener.set_nonblocking(true)?;
        let port = Port { port: listener.local_addr()?.port(), ..*port };
        Ok(Listening { listener, port })
    };
    listening().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            Fault::new("port_taken", exit::STATE, format!("{at} is taken: somebody here listens on it"))
                .fix(format!("ss -ltn shows what is taken; another port: -p OTHER:{}", port.guest))
        }
        io::ErrorKind::PermissionDenied => {
            let fault = Fault::new("listen", exit::FAILED, format!("{at} can't be listened on")).why(error);
            fault.fix(format!("a port from 1024 on: -p 8080:{}", port.guest))
        }
        _ => Fault::new("listen", exit::FAILED, format!("{at} can't be listened on")).why(error),
    })
}

/// Sees to it that a VM's ports are held before its start.
///
/// # Errors
/// As [`take`]'s, and the store's.
pub(crate) fn before_start(daemon: &Daemon, id: &str) -> Result<(), Fault> {
    if !daemon.published.is_held(id) {
        daemon.published.let_go(id);
        daemon.published.hold(id, take(&daemon.store.change(|t| ports::of(t, id))?)?);
    }
    Ok(())
}

/// Listens for a VM that was started, or that ran on without this daemon: then somebody may have taken a port meanwhile,
/// and the others are listened for.
pub(crate) fn begin(daemon: &Arc<Daemon>, ready: &Ready) {
    let id = &ready.vm.id;
    let listening = daemon.published.take(id).unwrap_or_else(|| again(daemon, id));
    // Opened while the caller's own descriptor says that the number is still this process's.
    let process = pidfd::open(ready.process().pid()).ok().filter(|_| ready.process().is_alive());
    let (Some(process), false) = (process, listening.is_empty()) else { return };
    let limits = if ready.vm.accel.as_deref() == Some(Accel::Kvm.name()) { Limits::HARDWARE } else { Limits::EMULATED };
    let way = Way {
        daemon: Arc::clone(daemon),
        id: id.clone(),
        name: ready.vm.name.clone(),
        vsock: Places::of(&daemon.settings, &ready.vm).vsock(),
        limits,
        connections: AtomicUsize::new(0),
    };
    let ports = listening.iter().map(|one| one.port).collect();
    daemon.published.lock().insert(id.clone(), Taken::Open(ports));
    let way = Arc::new(way);
    let started = std::thread::Builder::new().name("ports".into()).spawn({
        let way = Arc::clone(&way);
        move || {
            let open = Open { published: &way.daemon.published, id: &way.id };
            accept(&way, &listening, &process);
            // Before the entry: who waits for it may listen.
            drop(listening);
            drop(open);
        }
    });
    if let Err(error) = started {
        drop(Open { published: &daemon.published, id });
        log::fault("ports", "", &Fault::new("no_thread", exit::ROOM, error.to_string()));
    }
}

/// What can be taken again of a VM's ports.
fn again(daemon: &Daemon, id: &str) -> Vec<Listening> {
    let tell = |fault: &Fault| log::fault("ports", "", fault);
    let ports = daemon.store.change(|t| ports::of(t, id)).inspect_err(tell).unwrap_or_default();
    ports.iter().filter_map(|port| listen(port).inspect_err(tell).ok()).collect()
}

/// The way to a guest.
struct Way {
    daemon: Arc<Daemon>,
    id: String,
    name: String,
    vsock: PathBuf,
    limits: Limits,
    connections: AtomicUsize,
}

/// Accepts until the VM has ended.
fn accept(way: &Arc<Way>, listening: &[Listening], process: &PidFd) {
    loop {
        let of_ports = listening.iter().map(|one| PollFd::new(&one.listener, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> =
            of_ports.chain([PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)]).collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => std::thread::sleep(BREATH),
        }
        let woken: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if !process.is_alive() {
            return;
        }
        for (one, _) in listening.iter().zip(woken).filter(|(_, woken)| *woken) {
            match one.listener.accept() {
                Ok((stream, _)) => pass_on(way, stream, one.port.guest),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(BREATH),
            }
        }
    }
}

/// One connection, on a thread of its own. Where there is none to be had, or there are too many, it is closed.
fn pass_on(way: &Arc<Way>, stream: TcpStream, to: u16) {
    if way.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        way.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let counted = Counted(Arc::clone(way));
    let work = move || {
        // What the guest refuses is closed; nobody here has asked to be told.
        let _ = connect(&counted.0, &stream, to);
    };
    drop(std::thread::Builder::new().name("port".into()).spawn(work));
}

struct Counted(Arc<Way>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn connect(way: &Way, stream: &TcpStream, to: u16) -> Result<(), Fault> {
    let _counted = way.daemon.slots.connect(&way.id, &way.name)?;
    stream.set_nodelay(true).map_err(Fault::bug)?;
    let socket = guest::connect(&way.vsock).map_err(Fault::bug)?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
    let ended = || drop(stream.shutdown(Shutdown::Write));
    host::dial(&socket, way.limits, to, [stream.as_fd(), stream.as_fd()], ended).map_err(Fault::bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u16) -> Port {
        Port { address: Ipv4Addr::LOCALHOST.into(), port, guest: 80 }
    }

    #[test]
    fn a_port_is_taken_once_and_free_again() {
        let first = take(&[port(0)]).unwrap();
        let taken = first[0].port;
        assert_ne!(taken.port, 0, "a free one was found");
        let published = Published::default();
        published.hold("1", first);
        assert!(published.is_held("1") && published.open("1").is_empty());
        let fault = take(&[port(0), taken]).unwrap_err();
        assert_eq!((fault.code.as_str(), fault.exit), ("port_taken", exit::STATE));
        published.let_go("1");
        assert!(!published.is_held("1"));
        assert!(take(&[taken]).is_ok());
        assert_eq!(take(&[taken, taken]).unwrap_err().code, "port_taken", "twice in one VM");
    }

    #[test]
    fn ports_are_bounded() {
        assert_eq!(take(&[port(0); MOST + 1]).unwrap_err().code, "bad_ports");
        assert_eq!(take(&[Port { guest: 0, ..port(0) }]).unwrap_err().code, "bad_ports");
        let elsewhere = Port { address: [203, 0, 113, 1].into(), ..port(0) };
        assert_eq!(take(&[elsewhere]).unwrap_err().code, "listen");
    }

    #[test]
    fn who_waits_for_a_port_has_it_when_its_thread_is_over() {
        let published = Published::default();
        published.lock().insert("1".into(), Taken::Open(vec![port(1)]));
        assert_eq!(published.open("1"), [port(1)]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(BREATH);
                drop(Open { published: &published, id: "1" });
            });
            let begun = std::time::Instant::now();
            published.let_go("1");
            assert!(begun.elapsed() >= BREATH / 2 && begun.elapsed() < LET_GO);
        });
        assert!(published.open("1").is_empty());
    }
}
