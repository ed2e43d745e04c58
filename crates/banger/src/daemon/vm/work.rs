//! What a step on a VM works with: the daemon, the operation's id, and what it has to tell in the end.

use super::identity;
use super::places::Places;
use crate::api::Fault;
use crate::daemon::store::vms::{self, State, Vm};
use crate::daemon::{Daemon, log, ssh};
use crate::root;
use std::io;
use wire::client::{Client, Error};
use wire::image::NewFile;

/// One operation's work.
pub(crate) struct Work<'a> {
    pub(crate) daemon: &'a Daemon,
    op_id: String,
    /// Whether the guest is to tell its stages.
    pub(crate) stages: bool,
    /// Whether a command follows the start.
    pub(crate) command: bool,
    /// A VMM of a template's that was ended had waited for a processor longer than it had one.
    pub(crate) starved: bool,
    /// What was taken away, for a person.
    pub(crate) undone: Vec<&'static str>,
    /// What could not be.
    pub(crate) troubles: Vec<Fault>,
    /// What the caller is to know of what was done all the same.
    pub(crate) warnings: Vec<String>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(daemon: &'a Daemon, op_id: &str) -> Work<'a> {
        let (undone, troubles, warnings) = (Vec::new(), Vec::new(), Vec::new());
        let op_id = op_id.to_owned();
        Work { daemon, op_id, stages: false, command: false, starved: false, undone, troubles, warnings }
    }

    pub(crate) fn places<'b>(&self, vm: &'b Vm) -> Places<'b>
    where
        'a: 'b,
    {
        Places::of(&self.daemon.settings, vm)
    }

    pub(crate) fn helper(&self) -> Client<impl Fn() -> io::Result<root::Stream> + use<'_, 'a>> {
        self.daemon.helper(&self.op_id)
    }

    /// The helper's error as ours; `doing` says what was asked for.
    pub(crate) fn refused(&self, doing: &str, error: Error) -> Fault {
        Fault::helper(doing, &self.daemon.settings.helper, error)
    }

    /// Writes down how far the VM is: before the step that makes it so.
    pub(crate) fn reach(&self, vm: &mut Vm, state: State) -> Result<(), Fault> {
        vm.state = state;
        self.save(vm)
    }

    pub(crate) fn save(&self, vm: &Vm) -> Result<(), Fault> {
        self.daemon.store.change(|t| vms::save(t, vm))
    }

    /// Whether all of it could be taken away. Where not, the VM is `lost`, and `then` says what becomes of it.
    ///
    /// # Errors
    /// `lost`, with the first trouble's reason, remedies and exit status.
    pub(crate) fn all_gone(&self, name: &str, then: &str) -> Result<(), Fault> {
        let Some(trouble) = self.troubles.first() else { return Ok(()) };
        let why = trouble.why.as_deref().map_or(String::new(), |why| format!(" ({why})"));
        let message = format!("{name} is lost: not all of it could be taken away; it is tried again, and {then}");
        let fault = Fault::new("lost", trouble.exit, message).why(format!("{}{why}", trouble.message));
        Err(trouble.fix.iter().cloned().fold(fault, Fault::fix))
    }

    /// Writes down which VM has which ssh key. Where it can't be, ssh refuses to connect, and all else works.
    pub(crate) fn pin(&self) {
        if let Err(fault) = self.daemon.ssh.pin(&self.daemon.settings, &self.daemon.store) {
            log::fault("ssh", &self.op_id, &fault);
        }
    }

    /// What a new VM's disk gets for ssh; nothing where keys can't be kept, and all else works.
    pub(crate) fn ssh_files(&self, vm: &Vm) -> Vec<NewFile> {
        self.ssh_or_none(self.daemon.ssh.files(&self.places(vm)))
    }

    /// The part of it that no two VMs share.
    pub(crate) fn own_ssh_files(&self, vm: &Vm) -> Vec<NewFile> {
        self.ssh_or_none(self.daemon.ssh.own(&self.places(vm)))
    }

    /// The paths of what the agent of a VM from a template is told to write.
    pub(crate) fn own_files(&self) -> Vec<&'static str> {
        // Without an owner's key VMs have no ssh.
        let ssh = self.daemon.ssh.owner().ok().map(|_| ssh::OWN);
        [identity::HOSTS].into_iter().chain(ssh.into_iter().flatten()).collect()
    }

    /// The part of it that all VMs have.
    pub(crate) fn shared_ssh_files(&self) -> Vec<NewFile> {
        self.ssh_or_none(self.daemon.ssh.shared())
    }

    fn ssh_or_none(&self, files: Result<Vec<NewFile>, Fault>) -> Vec<NewFile> {
        files.unwrap_or_else(|fault| {
            log::fault("ssh", &self.op_id, &fault);
            Vec::new()
        })
    }

    /// Takes one thing away: what fails is kept to be told, and the rest goes on.
    pub(crate) fn undo(&mut self, what: &'static str, done: Result<(), Fault>) {
        match done {
            Ok(()) => self.undone.push(what),
            Err(fault) => self.troubles.push(fault),
        }
    }
}
