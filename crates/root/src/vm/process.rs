//! VMs as processes: found by socket, signalled by the descriptor that was opened at their launch.

use super::jail;
use super::live::Found;
use super::older::{self, Older};
use super::record::Record;
use crate::fail::Fail;
use crate::host::Host;
use std::time::Duration;
use sys::pidfd::PidFd;
use wire::Code;
use wire::code::shown;
use wire::name::signal::Signal;
use wire::vm::{Kill, Pid, Running};

/// How long a kill waits for the end that it has caused: the answer is to mean that the VM is gone.
const KILL_TIME: Duration = Duration::from_secs(10);

/// A VM's process that is proven to be one.
enum Vm {
    /// By the record of its launch.
    Launched(Box<Found>),
    /// By its shape.
    Older(Older),
}

impl Vm {
    fn vmm(&self) -> &PidFd {
        match self {
            Vm::Launched(found) => &found.vmm,
            Vm::Older(older) => &older.vmm,
        }
    }

    fn has_socket(&self, api_sock: &str) -> bool {
        match self {
            Vm::Launched(found) => has_socket(&found.record, api_sock),
            Vm::Older(older) => older.socket == api_sock,
        }
    }
}

fn has_socket(record: &Record, api_sock: &str) -> bool {
    record.socket.path == api_sock || record.jail.as_ref().is_some_and(|jail| jail.socket(jail::API_SOCKET) == api_sock)
}

fn by_pid(host: &Host, pid: Pid) -> Option<Vm> {
    let launched = host.vms.find(|record| record.process.pid == pid.0);
    launched.map(|found| Vm::Launched(Box::new(found))).or_else(|| older::by_pid(host, pid.0).map(Vm::Older))
}

/// The VM whose API socket is exactly that.
pub(crate) fn find(host: &Host, api_sock: &str) -> Result<Pid, Fail> {
    let launched = host.vms.find(|record| has_socket(record, api_sock)).map(|found| Vm::Launched(Box::new(found)));
    let found = launched.or_else(|| older::by_socket(host, api_sock).map(Vm::Older));
    found.map(|vm| Pid(vm.vmm().pid())).ok_or_else(|| Fail::new(format!("no VM has the socket {}", shown(api_sock))))
}

/// Ends a VM at once.
pub(crate) fn kill(host: &Host, pid: Pid) -> Result<(), Fail> {
    send(host, &vm(host, pid)?, Signal::Kill)
}

/// Sends a VM a signal. Whether the pid is a VM's is judged before the signal.
pub(crate) fn signal(host: &Host, kill: &Kill) -> Result<(), Fail> {
    let vm = vm(host, kill.pid)?;
    send(host, &vm, kill.signal.clone()?)
}

/// Whether that process is a VM that runs, and has that socket. False where in doubt.
pub(crate) fn running(host: &Host, question: &Running) -> bool {
    let vm = question.pid.and_then(|pid| by_pid(host, pid));
    vm.is_some_and(|vm| question.api_sock.is_empty() || vm.has_socket(&question.api_sock))
}

fn vm(host: &Host, pid: Pid) -> Result<Vm, Fail> {
    by_pid(host, pid).ok_or_else(|| no_vm(pid))
}

fn no_vm(pid: Pid) -> Fail {
    Fail::new(format!("pid {pid} is no VM of banger's, or has ended")).code(Code::InvalidPid)
}

fn send(host: &Host, vm: &Vm, signal: Signal) -> Result<(), Fail> {
    // To the process that was opened and looked at, whoever has its number by now.
    let vmm = vm.vmm();
    vmm.send_signal(number(signal)).map_err(|error| no_vm(Pid(vmm.pid())).because(error))?;
    if signal == Signal::Kill
        && vmm.wait_end(KILL_TIME)
        && let Vm::Launched(found) = vm
    {
        host.vms.settle(&found.record.vm_id);
    }
    Ok(())
}

fn number(signal: Signal) -> i32 {
    match signal {
        Signal::Term => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Int => libc::SIGINT,
        Signal::Hup => libc::SIGHUP,
        Signal::Quit => libc::SIGQUIT,
        Signal::Usr1 => libc::SIGUSR1,
        Signal::Usr2 => libc::SIGUSR2,
        Signal::Abrt => libc::SIGABRT,
    }
}
