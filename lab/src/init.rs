//! As `/init` of the initrd: modules, the root file system, and systemd with the unit that starts this program again.
//!
//! Nothing of ours is on the image: program and unit are put below `/run`, which systemd takes over as it finds it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};

const ROOT: &str = "/root";
const DISK: &str = "/dev/vda";
const PROGRAM: &str = "run/banger-lab/inside";
/// How long a disk may take to appear after its driver was loaded.
const DISK_LIMIT: Duration = Duration::from_secs(10);

const UNIT: &str = "[Unit]
Description=What the host asks for
[Service]
ExecStart=/run/banger-lab/inside
Restart=always
RestartSec=100ms
TasksMax=infinity
LimitNOFILE=65536
OOMScoreAdjust=-900
";

/// Doesn't come back unless something is wrong.
pub(crate) fn start() -> io::Result<()> {
    load_modules()?;
    fs::create_dir_all(ROOT)?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    wait_for(Path::new(DISK))?;
    mount(DISK, ROOT, "ext4", MountFlags::NOATIME, None)?;
    prepare_run()?;
    mount_move("/dev", format!("{ROOT}/dev"))?;
    rustix::process::chdir(ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Err(Command::new("/sbin/init").env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin").exec())
}

fn load_modules() -> io::Result<()> {
    for file in fs::read_to_string("/modules/order")?.lines() {
        let object = fs::read(format!("/modules/{file}"))?;
        rustix::system::init_module(&object, c"")
            .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("module {file}: {e}")))?;
    }
    Ok(())
}

fn wait_for(disk: &Path) -> io::Result<()> {
    let start = Instant::now();
    while !disk.exists() {
        if start.elapsed() > DISK_LIMIT {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no {} appeared", disk.display())));
        }
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// `/run` with this program and its unit in it.
fn prepare_run() -> io::Result<()> {
    let run = format!("{ROOT}/run");
    mount("tmpfs", &run, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    fs::create_dir(format!("{run}/banger-lab"))?;
    fs::copy("/init", format!("{ROOT}/{PROGRAM}"))?;
    let units = format!("{run}/systemd/system");
    fs::create_dir_all(format!("{units}/multi-user.target.wants"))?;
    fs::write(format!("{units}/banger-lab.service"), UNIT)?;
    symlink("../banger-lab.service", format!("{units}/multi-user.target.wants/banger-lab.service"))
}
