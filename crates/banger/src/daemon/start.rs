//! The daemon's start: its command line, its places, its lock, its socket.

use super::ahead::{Ahead, Amount};
use super::aside::Aside;
use super::end::{self, End};
use super::error::exit;
use super::image::{self, Images};
use super::settings::{self, ImageFiles, Settings, Stale, TemplateBounds};
use super::ssh::Ssh;
use super::store::Store;
use super::store::vms::{self, State};
use super::vm::pool::{self, Pool, Usual};
use super::vm::stale;
use super::vmm::Wanted;
use super::{Daemon, ahead, log, names, reconcile, serve};
use crate::api::Fault;
use crate::config::Config;
use clap::{CommandFactory, Parser, ValueEnum};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// How many descriptors it takes where it may.
const DESCRIPTORS: u64 = 16 << 10;
/// How long a lock is waited for. Who has it for good answers on his socket meanwhile.
const LOCK_TIME: Duration = Duration::from_secs(1);

/// The owner's daemon: VMs, images and kernels, by the root helper.
#[derive(Parser)]
#[command(name = "bangerd", version, max_term_width = 120)]
struct Bangerd {
    /// The directory of images, kernels, disks and the store; this user writes it.
    #[arg(long, value_name = "DIR", env = "BANGER_STATE_DIR", default_value = settings::STATE)]
    state_dir: PathBuf,
    /// The directory of sockets; this user writes it.
    #[arg(long, value_name = "DIR", env = "BANGER_RUNTIME_DIR", default_value = settings::RUNTIME)]
    runtime_dir: PathBuf,
    /// The socket to listen on; usually bangerd.sock in the runtime directory.
    #[arg(long, value_name = "PATH", env = "BANGER_SOCKET")]
    socket: Option<PathBuf>,
    /// The root helper's socket.
    #[arg(long, value_name = "PATH", env = "BANGER_HELPER_SOCKET", default_value = crate::root::SOCKET)]
    helper_socket: PathBuf,
    /// Where to answer for the names of VMs.
    #[arg(long, value_name = "ADDRESS", default_value = names::ADDRESS)]
    names: SocketAddr,
    /// How many taps are kept ready for the next VMs [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=64))]
    taps_ahead: Option<u8>,
    /// How many copies of the image that was used last are kept ready, where disks are copies [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=16))]
    disks_ahead: Option<u8>,
    /// Whether the first run of an image leaves a template behind: auto or off [default: auto].
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "off"])]
    templates: Option<String>,
    /// How many VMs of the usual kind are kept ready, paused, where there is a template for them [default: 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=64))]
    warm_pool: Option<u8>,
    /// What is logged, and what is worse [default: info].
    #[arg(long, value_name = "LEVEL", value_enum, env = "BANGER_LOG_LEVEL")]
    log_level: Option<log::Level>,
    /// The guest's agent, a static program [default: banger-agent beside this program].
    #[arg(long, value_name = "FILE", env = "BANGER_AGENT")]
    agent: Option<PathBuf>,
    /// An image that is not in the index, by its files below the state directory.
    #[arg(long, value_names = ["ROOT", "KERNEL", "INITRD"], num_args = 3)]
    image_files: Option<Vec<PathBuf>>,
}

/// The definition of its command line, of which the manual is made.
pub fn command() -> clap::Command {
    Bangerd::command()
}

/// Runs the daemon of this process; its exit status.
pub fn main() -> ExitCode {
    match run(Bangerd::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let exit = fault.exit;
            eprint!("{}", crate::cli::problem(fault));
            ExitCode::from(exit)
        }
    }
}

fn run(given: Bangerd) -> Result<(), Fault> {
    if rustix::process::geteuid().is_root() {
        return Err(Fault::new("is_root", exit::USAGE, "bangerd is the owner's, and root is nobody's VM's owner")
            .fix("run it as the user whom `banger helper init` named"));
    }
    let end = End::watch()?;
    let _ = more_descriptors();
    // What is made here is this user's alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let given_names = given.names;
    let config = Config::load()?;
    let configured = || log::Level::from_str(config.log_level.as_deref()?, false).ok();
    log::from(given.log_level.or_else(configured).unwrap_or(log::Level::Info));
    for warning in config.warnings.iter().chain(&config.without_effect) {
        log::say("WARN", warning, "");
    }
    let taps = given.taps_ahead.or(config.tap_pool_size).unwrap_or(4);
    let disks = given.disks_ahead.or(config.disk_pool_size).unwrap_or(2);
    let pool = Pool::new(given.warm_pool.or(config.warm_pool).unwrap_or(0).into(), Usual::of(&config));
    let amount = Amount { taps: taps.into(), disks: disks.into() };
    let ssh_key = config.ssh_key_path.clone();
    let settings = check(given, config)?;
    let _lock = lock(&settings.state)?;
    make_dir(&settings.state.join("vms"))?;
    make_dir(&settings.runtime.join("vms"))?;
    let store = Store::open(&settings.state.join("banger.db"))?;
    let images = Images::open(&settings.state)?;
    let ssh = Ssh::open(&settings.state, ssh_key)?;
    let (slots, calls, vmm, names) = (Arc::default(), Arc::default(), OnceLock::new(), OnceLock::new());
    let (lost, losses) = mpsc::channel();
    let (wake, woken) = mpsc::channel();
    let ahead = Ahead::new(amount, settings.state.join("ahead"), wake)?;
    let aside = Aside::open(settings.state.join("gone"))?;
    let daemon = Arc::new(Daemon {
        settings,
        store,
        images,
        ssh,
        slots,
        calls,
        lost,
        vmm,
        ahead,
        aside,
        stamps: super::vm::stamps::Stamps::begin(),
        pool,
        published: super::vm::publish::Published::default(),
        names,
    });
    if let Err(fault) = image::sweep(&daemon).and_then(|()| image::template::begin(&daemon)) {
        // They take room, and that is all; the next start tries again.
        log::fault("sweep", "", &fault);
    }
    prepare_ssh(&daemon);
    answer_names(&daemon, given_names)?;
    reconcile::begin(&daemon, losses)?;
    ahead::begin(&daemon, woken)?;
    image::template::begin_unasked(&daemon)?;
    pool::begin(&daemon)?;
    stale::begin(&daemon)?;
    let listener = listen(&daemon.settings.socket)?;
    end.shuts(&listener)?;
    end::tell("READY=1");
    let shut = serve::until_shut(&daemon, &listener);
    if shut.kind() != io::ErrorKind::InvalidInput {
        return Err(Fault::file("listening on", &daemon.settings.socket, &shut));
    }
    end::come(&daemon);
    Ok(())
}

fn check(given: Bangerd, mut config: Config) -> Result<Settings, Fault> {
    let absolute = |path: PathBuf| match path.is_absolute() {
        true => Ok(path),
        false => Err(Fault::new("usage", exit::USAGE, format!("{} is no absolute path", path.display()))),
    };
    let runtime = absolute(given.runtime_dir)?;
    config.templates = given.templates.or(config.templates);
    let files = given.image_files.and_then(|files| <[PathBuf; 3]>::try_from(files).ok());
    let state = absolute(given.state_dir)?;
    Ok(Settings {
        jails: Settings::jails(&config, &state)?,
        stale: Stale::of(&config),
        state,
        socket: given.socket.unwrap_or_else(|| runtime.join("bangerd.sock")),
        runtime,
        helper: given.helper_socket,
        agent: given.agent.unwrap_or_else(beside),
        bridge: Settings::bridge(&config)?,
        templates: TemplateBounds::of(&config),
        image: config.default_image_name,
        resolver: config.default_dns,
        files: files.map(|[root, kernel, initrd]| ImageFiles { root, kernel, initrd }),
        vmm: Wanted { accel: config.accel, firecracker: config.firecracker_bin },
        jailer: config.jailer_bin,
        disk: config.disk_method,
        synced: config.file_sync,
    })
}

/// A connection to a published port takes two descriptors, an attached command four: a session's usual 1,024 are few for many VMs.
/// Where it may not have more it has those.
fn more_descriptors() -> rustix::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = DESCRIPTORS.min(limit.maximum.unwrap_or(u64::MAX)).max(limit.current.unwrap_or(u64::MAX));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
}

/// Without ssh's keys VMs have no ssh, and all else works.
fn prepare_ssh(daemon: &Daemon) {
    if let Err(fault) =
        daemon.ssh.begin(&daemon.settings.socket).and_then(|()| daemon.ssh.pin(&daemon.settings, &daemon.store))
    {
        log::fault("ssh", "", &fault);
    }
}

/// Answers for the names of VMs; where the address is taken VMs have none, and all else works.
fn answer_names(daemon: &Arc<Daemon>, address: SocketAddr) -> Result<(), Fault> {
    let socket = match names::open(address) {
        Ok(socket) => socket,
        Err(error) => {
            log::say("WARN", &format!("names of VMs are not answered for: {address}: {error}"), "");
            return Ok(());
        }
    };
    let answering = Arc::clone(daemon);
    let work = move || {
        let find = |name: &str| answering.store.change(|t| vms::by_name(t, name)).ok().flatten();
        let running = |name: &str| find(name).filter(|vm| vm.state == State::Ready).map(|vm| vm.address);
        if let Err(error) = names::serve(&socket, running) {
            log::say("ERROR", &format!("names of VMs are not answered for any more: {error}"), "");
        }
    };
    std::thread::Builder::new().name("names".into()).spawn(work).map_err(Fault::bug)?;
    let _ = daemon.names.set(address);
    Ok(())
}

/// The agent is installed beside the daemon.
fn beside() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/bangerd".into());
    here.with_file_name("banger-agent")
}

/// One daemon a state directory: the lock goes with this process, however it ends.
fn lock(state: &Path) -> Result<File, Fault> {
    let path = state.join("bangerd.lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open.map_err(|error| {
        Fault::file("opening", &path, &error).fix("sudo banger helper init --owner \"$USER\" makes the directories")
    })?;
    // A child that one who was killed had begun has the lock too, until it executes its program.
    let until = Instant::now() + LOCK_TIME;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let what = format!("a bangerd runs already on {}", state.display());
                return Err(Fault::new("already_running", exit::STATE, what));
            }
            Err(errno) => return Err(Fault::file("locking", &path, &io::Error::from(errno))),
        }
    }
}

fn make_dir(path: &Path) -> Result<(), Fault> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Fault::file("making", path, &error)),
        _ => Ok(()),
    }
}

/// Listens. The umask makes the socket 0600 from its first moment; who holds the lock may remove an old one.
fn listen(path: &Path) -> Result<UnixListener, Fault> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Fault::file("removing", path, &error)),
        _ => {}
    }
    let usual = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    rustix::process::umask(usual);
    listener.map_err(|error| Fault::file("listening on", path, &error))
}
