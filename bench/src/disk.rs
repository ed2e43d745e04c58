//! Snapshots against what the existing helper does: two `losetup`, a `blockdev`, a `dmsetup`, and the way back. In the
//! lab, where there is device-mapper; udev is seen by neither side.

use crate::stats::{Times, compare, head};
use crate::world::{Helper, OWNER, SOCKET};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::process::Command;
use wire::client::Client;
use wire::disk::NewSnapshot;
use wire::name::dm::DmName;
use wire::path::{HostPath, Root, Roots};

const STATE: &str = "/var/lib/banger";
const SIZE: u64 = 64 << 20;

pub(crate) fn measure(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = Client::new(|| UnixStream::connect(SOCKET));
    sparse("base")?;
    // Others stand on the base, as they do on a machine in use.
    for n in 0..20 {
        client.create_dm_snapshot(&snapshot(&format!("other-{n}"))?)?;
    }
    let asked = snapshot("ours")?;
    sparse("theirs.cow")?;
    let (mut make, mut take) = ((Times::default(), Times::default()), (Times::default(), Times::default()));
    for round in 0..rounds * 5 {
        let handles = make.0.take(|| client.create_dm_snapshot(&asked))?;
        take.0.take(|| client.cleanup_dm_snapshot(&handles))?;
        let loops = make.1.take(programs_make)?;
        take.1.take(|| programs_take(&loops))?;
        if round == 0 {
            // The first of each warms caches and is not counted.
            (make, take) = Default::default();
        }
    }
    for n in 0..20 {
        client.remove_dm_snapshot(&DmName::new(&format!("fc-rootfs-other-{n}"))?)?;
    }
    head("Snapshots, in the lab: ratios inside one run say something, milliseconds don't");
    compare("create_dm_snapshot, 20 others on the base", &make.0, &make.1, "2 losetup, blockdev, dmsetup");
    compare("cleanup_dm_snapshot", &take.0, &take.1, "dmsetup, 2 losetup");
    Ok(())
}

fn sparse(name: &str) -> Result<()> {
    let path = format!("{STATE}/vms/{name}");
    File::create(&path)?.set_len(SIZE)?;
    chown(&path, Some(OWNER), Some(OWNER))?;
    Ok(())
}

fn snapshot(id: &str) -> Result<NewSnapshot> {
    sparse(&format!("{id}.cow"))?;
    let roots = Roots { state: STATE.into(), runtime: "/run/banger".into() };
    let path = |name: &str| {
        HostPath::new(&format!("{STATE}/vms/{name}"), &[Root::State], &roots, wire::Code::BadParams, "path")
    };
    Ok(NewSnapshot {
        rootfs: path("base")?,
        cow: path(&format!("{id}.cow"))?,
        name: DmName::new(&format!("fc-rootfs-{id}"))?,
    })
}

fn programs_make() -> Result<[String; 2]> {
    let base = said("losetup", &["-f", "--show", "--read-only", &format!("{STATE}/vms/base")])?;
    let cow = said("losetup", &["-f", "--show", &format!("{STATE}/vms/theirs.cow")])?;
    let sectors = said("blockdev", &["--getsz", &base])?;
    let table = format!("0 {sectors} snapshot {base} {cow} P 8");
    said("dmsetup", &["create", "fc-rootfs-theirs", "--table", &table])?;
    Ok([base, cow])
}

fn programs_take(loops: &[String; 2]) -> Result<()> {
    // udev may look at it: the existing helper tries again too.
    said("dmsetup", &["remove", "--retry", "fc-rootfs-theirs"])?;
    loops.iter().rev().try_for_each(|one| said("losetup", &["-d", one]).map(|_| ()))
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
