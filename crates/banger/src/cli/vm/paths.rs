//! What is in a directory of a guest's, for who completes a path. Nothing is changed there, and nobody waits for it long.

use super::run;
use crate::api::{Call, Request, client};
use crate::cli::reach::{in_time, socket};
use agent::client::{Client, Program};
use std::time::Duration;

/// The most of a directory's names, in bytes.
const NAMES: usize = 64 << 10;
/// A guest that says nothing for so long keeps the connection no longer: its shell has given up by then.
const SILENCE: Duration = Duration::from_secs(1);

/// The names in that directory of the VM's, those of directories with a `/`; `None` where there are none in time.
pub(crate) fn listed(vm: &str, directory: &str) -> Option<Vec<String>> {
    let request = Request::VmExec { name: vm.to_owned(), looks: true };
    let call = Call { op_id: crate::daemon::serve::new_op_id(), trace: false, request };
    let directory = if directory.is_empty() { "." } else { directory }.to_owned();
    in_time(move || {
        let mut running = client::begin(&socket(), &call).ok()?;
        let (_, stream) = run::attach(&mut running, |_| {}).ok()?;
        stream.set_read_timeout(Some(SILENCE)).ok()?;
        let args = ["/bin/ls", "-1Ap", "--", &directory];
        let program = Program { args: &args, env: &["LC_ALL=C"], user: "root", cwd: "/root", most: NAMES };
        let out = Client::new(stream).ok()?.exec(program).ok()?;
        Some(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    })?
}
