//! VMs as processes: found by socket, signalled by the descriptor that was opened at their launch.

use super::live::Found;
use super::record::Record;
use crate::fail::Fail;
use crate::host::Host;
use std::time::Duration;
use wire::Code;
use wire::code::shown;
use wire::name::signal::Signal;
use wire::vm::{Kill, Pid, Running};

/// How long a kill waits for the end that it has caused: the answer is to mean that the VM is gone.
const KILL_TIME: Duration = Duration::from_secs(2);

/// The VM whose API socket is exactly that.
pub(crate) fn find(host: &Host, api_sock: &str) -> Result<Pid, Fail> {
    let found = host.vms.find(|record| has_socket(record, api_sock));
    found.map(|vm| Pid(vm.vmm.pid())).ok_or_else(|| Fail::new(format!("no VM has the socket {}", shown(api_sock))))
}

fn has_socket(record: &Record, api_sock: &str) -> bool {
    record.socket.path == api_sock
}

/// Ends a VM at once.
pub(crate) fn kill(host: &Host, pid: Pid) -> Result<(), Fail> {
    send(host, pid, Signal::Kill)
}

/// Sends a VM a signal. Whether the pid is a VM's is judged before the signal.
pub(crate) fn signal(host: &Host, kill: &Kill) -> Result<(), Fail> {
    vm(host, kill.pid)?;
    send(host, kill.pid, kill.signal.clone()?)
}

/// Whether that process is a VM that runs, and has that socket. False where in doubt.
pub(crate) fn running(host: &Host, question: &Running) -> bool {
    let Some(pid) = question.pid else { return false };
    let asked = &question.api_sock;
    host.vms.find(|record| record.process.pid == pid.0 && (asked.is_empty() || has_socket(record, asked))).is_some()
}

fn vm(host: &Host, pid: Pid) -> Result<Found, Fail> {
    host.vms.find(|record| record.process.pid == pid.0).ok_or_else(|| no_vm(pid))
}

fn no_vm(pid: Pid) -> Fail {
    Fail::new(format!("pid {pid} is no VM of banger's, or has ended")).code(Code::InvalidPid)
}

fn send(host: &Host, pid: Pid, signal: Signal) -> Result<(), Fail> {
    let found = vm(host, pid)?;
    // To the process that was launched, whoever has its number by now.
    found.vmm.send_signal(number(signal)).map_err(|error| no_vm(pid).because(error))?;
    if signal == Signal::Kill && found.vmm.wait_end(KILL_TIME) {
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
