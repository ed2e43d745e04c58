//! `banger image`: made of Debian's packages or of an archive, listed, shown, removed.
//!
//! Debian's packages are set up here, in the user's own session, and not by the daemon: that needs namespaces and
//! set-user-id programs, which a daemon has no use for. What comes out is an archive, which the daemon takes as it takes
//! any other.

use super::asset::{self, List, Rm, Show};
use super::problem::Problem;
use super::progress::Progress;
use super::reach::{Asked, Reach};
use super::{manner, output, size, text};
use crate::api::asset::{About, Asset};
use crate::api::{Call, Fault, Request, Stage, StageState, client};
use crate::daemon::error::exit;
use crate::image::build::{self, Recipe};
use crate::image::debian;
use crate::image::error::Error;
use crate::image::oci::{self, Platform, Reference};
use crate::image::progress::{Stage as Part, Watch};
use crate::image::store::Store;
use clap::{Args, Subcommand};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Subcommand)]
pub(crate) enum Image {
    /// Make an image of Debian's packages, from this machine's own mirror.
    Build(Build),
    /// Make an image of a root file system in a tar archive; gzip, XZ or zstd or none.
    Import(Import),
    /// Make an image of one in an OCI registry: debian:12, quay.io/NAME/IMAGE@sha256:…
    Pull(Pull),
    /// Make an image of a stopped VM's disk: banger image promote web as my-image.
    Promote(Promote),
    /// List images.
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all that is known of images.
    Show(Show),
    /// Take images away.
    #[command(alias = "delete")]
    Rm(Rm),
}

#[derive(Args)]
pub(crate) struct Build {
    /// Its name.
    name: String,
    /// Debian's release, by its code name [default: this machine's].
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// Packages beside those of a minimal Debian.
    #[arg(long, value_name = "PKG,…", value_delimiter = ',')]
    include: Vec<String>,
    /// A program that is run in the finished system, as its root.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// A mirror in the place of this machine's.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    #[command(flatten)]
    disk: Disk,
    #[command(flatten)]
    made: Made,
}

#[derive(Args)]
pub(crate) struct Import {
    /// The archive; - reads it from standard input.
    file: PathBuf,
    /// The image's name.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    disk: Disk,
    #[command(flatten)]
    made: Made,
}

#[derive(Args)]
pub(crate) struct Pull {
    /// The image: [REGISTRY/]NAME[:TAG][@DIGEST]; without a registry it is Docker Hub's.
    #[arg(value_parser = Reference::parse)]
    reference: Reference,
    /// The name here [default: made of the reference].
    #[arg(long)]
    name: Option<String>,
    /// Whose programs it is to hold [default: this machine's].
    #[arg(long, value_name = "OS/ARCH", value_parser = Platform::parse)]
    platform: Option<Platform>,
    #[command(flatten)]
    disk: Disk,
    #[command(flatten)]
    made: Made,
}

#[derive(Args)]
pub(crate) struct Promote {
    /// The VM: its name, or 4 or more digits of its id.
    vm: String,
    /// The image's name; the word `as` may stand before it.
    #[arg(required = true, num_args = 1..=2, value_names = ["as", "NAME"])]
    name: Vec<String>,
    #[command(flatten)]
    made: Made,
}

/// How long the disk of an image is whose files come from elsewhere.
#[derive(Args)]
struct Disk {
    /// How long its disk is: 4G; it takes what is written to it.
    #[arg(long, value_name = "SIZE", value_parser = size::mebibytes, default_value = "8G")]
    size: u64,
}

impl Disk {
    fn bytes(&self) -> u64 {
        self.size << 20
    }
}

/// What all that makes images takes.
#[derive(Args)]
struct Made {
    /// Give it the name though an image has it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    asked: Asked,
}

impl Image {
    /// Does it.
    pub(crate) fn run(self) -> Result<u8, Problem> {
        match self {
            Image::Build(build) => build.run().map(|()| 0),
            Image::Import(import) => import.run().map(|()| 0),
            Image::Pull(pull) => pull.run().map(|()| 0),
            Image::Promote(promote) => promote.run().map(|()| 0),
            Image::List(list) => {
                let none = "no images yet: banger image build debian-12\n";
                asset::list(&list, Request::ImageList {}, none).map(|()| 0)
            }
            Image::Show(show) => asset::show(&show, |name| Request::ImageShow { name }),
            Image::Rm(rm) => {
                asset::rm(&rm, "no_such_image", |name, force, dry_run| Request::ImageRm { name, force, dry_run })
            }
        }
    }
}

impl Build {
    fn run(&self) -> Result<(), Problem> {
        let script = self.script.as_deref().map(|path| {
            std::fs::read_to_string(path)
                .map_err(|error| Problem::usage(format!("the script {} can't be read", path.display())).why(error))
        });
        let recipe = Recipe {
            suite: self.suite.clone(),
            include: self.include.clone(),
            script: script.transpose()?,
            size: self.disk.bytes(),
            mirror: self.mirror.clone(),
        };
        let about: About = self.made.asked.reach.ask(Request::ImageAbout {})?;
        let made = build(&self.made.asked.reach, &about, &self.name, &recipe, self.made.force)?;
        tell(&made, self.made.asked.json, &made.name)
    }
}

impl Import {
    fn run(&self) -> Result<(), Problem> {
        let stdin = self.file == Path::new("-");
        let open = if stdin { None } else { Some(File::open(&self.file)) };
        let open = open
            .transpose()
            .map_err(|error| Problem::usage(format!("the archive {} can't be read", self.file.display())).why(error))?;
        let standard = io::stdin();
        let archive = open.as_ref().map_or(standard.as_fd(), AsFd::as_fd);
        let source = if stdin { "standard input".to_owned() } else { self.file.display().to_string() };
        let request = Request::ImageImport {
            name: self.name.clone(),
            source,
            size_bytes: Some(self.disk.bytes()),
            built: false,
            layers: None,
            force: self.made.force,
        };
        let made = with_inputs(&self.made.asked.reach, request, &[archive])?;
        tell(&made, self.made.asked.json, &made.digest)
    }
}

impl Pull {
    fn run(&self) -> Result<(), Problem> {
        let (reach, force) = (&self.made.asked.reach, self.made.force);
        not_root("pulled")?;
        let about: About = reach.ask(Request::ImageAbout {})?;
        let name = self.name.clone().unwrap_or_else(|| self.reference.short_name());
        is_free(reach, &name, force)?;
        let store = Store::open(Path::new(&about.state)).map_err(of_error)?;
        store.sweep_layers();
        let work = store.work(0).map_err(of_error)?;
        let call = reach.call(Request::Ping {});
        let progress = Progress::begin(reach.progress(), &call.op_id);
        let shown = Shown { progress: &progress, about: &name, begun: Instant::now(), stage: Cell::new(None) };
        let platform = self.platform.clone().unwrap_or_else(Platform::here);
        let pulled = oci::pull(&self.reference, &platform, &store, &work, &shown).map_err(of_error)?;
        shown.end();
        if pulled.kept > 0 {
            output::hint(&format!("kept {} of {} layers from before\n", pulled.kept, pulled.layers.len()));
        }
        let request = Request::ImageImport {
            name: name.clone(),
            source: format!("{} {}", self.reference, pulled.digest),
            size_bytes: Some(self.disk.bytes()),
            built: false,
            layers: u8::try_from(pulled.layers.len()).ok(),
            force,
        };
        let call = Call { request, ..call };
        let inputs: Vec<BorrowedFd<'_>> = pulled.layers.iter().map(AsFd::as_fd).collect();
        let told = |stage: Stage| progress.stage(&stage);
        let made: Asset = client::ask_with(&reach.socket, &call, &inputs, told).map_err(Problem::of_fault)?;
        drop(progress);
        oci::forget(&pulled.paths);
        tell(&made, self.made.asked.json, &made.digest)
    }
}

impl Promote {
    fn run(&self) -> Result<(), Problem> {
        let name = match self.name.as_slice() {
            [name] => name,
            [word, name] if word == "as" => name,
            _ => return Err(Problem::usage("banger image promote VM as NAME")),
        };
        let (vm, name) = (self.vm.clone(), name.clone());
        let made =
            with_inputs(&self.made.asked.reach, Request::ImagePromote { vm, name, force: self.made.force }, &[])?;
        tell(&made, self.made.asked.json, &made.digest)
    }
}

fn not_root(done: &str) -> Result<(), Problem> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let what = format!("an image is {done} by the owner of the VMs, not by root");
    Err(Problem::of_fault(
        Fault::new("is_root", exit::USAGE, what).fix("run it as the user whom `banger helper init` named"),
    ))
}

/// What was made; on a pipe what scripts go on with.
pub(super) fn tell(made: &Asset, json: bool, piped: &str) -> Result<(), Problem> {
    match (json, output::on_terminal()) {
        (true, _) => output::json(made),
        (false, true) => {
            let (name, size) = (text::line(&made.name), size::shown(made.size_bytes));
            output::data(&format!("{name}  {size}  {}\n", text::line(&made.digest)))
        }
        (false, false) => output::data(&format!("{}\n", text::line(piped))),
    }
}

/// Asks, gives what is to be read, and shows the stages.
pub(super) fn with_inputs(reach: &Reach, request: Request, inputs: &[BorrowedFd<'_>]) -> Result<Asset, Problem> {
    let call = reach.call(request);
    let progress = Progress::begin(reach.progress(), &call.op_id);
    client::ask_with(&reach.socket, &call, inputs, |stage| progress.stage(&stage)).map_err(Problem::of_fault)
}

/// Builds a Debian here, and has the daemon keep it.
fn build(reach: &Reach, about: &About, name: &str, recipe: &Recipe, force: bool) -> Result<Asset, Problem> {
    not_root("built")?;
    is_free(reach, name, force)?;
    // The daemon's own places: what is left of a build that is killed, its next start removes.
    let store = Store::open(Path::new(&about.state)).map_err(of_error)?;
    let work = store.work(build::BUILD_ROOM).map_err(of_error)?;
    let suite = recipe.suite.as_deref().or(debian::release().ok()).unwrap_or_default();
    let request = Request::ImageImport {
        name: name.to_owned(),
        source: ["Debian", suite, &recipe.include.join(",")].join(" ").trim_end().to_owned(),
        size_bytes: Some(recipe.size),
        built: true,
        layers: None,
        force,
    };
    let call = reach.call(request);
    let progress = Progress::begin(reach.progress(), &call.op_id);
    let shown = Shown { progress: &progress, about: name, begun: Instant::now(), stage: Cell::new(None) };
    let archive = build::debian(recipe, &work, &shown).map_err(of_error)?;
    shown.end();
    let failed = |error| Problem::new("file", format!("{} can't be read", archive.display())).why(error);
    let archive = File::open(&archive).map_err(failed)?;
    keep(reach, &call, &archive, &progress)
}

fn keep(reach: &Reach, call: &Call, archive: &File, progress: &Progress) -> Result<Asset, Problem> {
    let told = |stage: Stage| progress.stage(&stage);
    client::ask_with(&reach.socket, call, &[archive.as_fd()], told).map_err(Problem::of_fault)
}

/// A name that is taken is said now, and not after minutes.
fn is_free(reach: &Reach, name: &str, force: bool) -> Result<(), Problem> {
    crate::daemon::image::check_name(crate::daemon::store::assets::Kind::Image, name).map_err(Problem::of_fault)?;
    match reach.try_ask::<Asset>(Request::ImageShow { name: name.to_owned() }) {
        Ok(there) if there.name == name && !force => {
            let fault = Fault::new("name_taken", exit::STATE, format!("there is an image named {name} already"));
            Err(Problem::of_fault(fault.fix("--force gives it the name").fix(format!("banger image rm {name}"))))
        }
        Err(fault) if fault.code != "no_such_image" && fault.code != "ambiguous" => Err(Problem::of_fault(fault)),
        _ => Ok(()),
    }
}

pub(super) fn of_error(error: Error) -> Problem {
    Problem::of_fault(Fault::from(error))
}

/// Stages of what is made here, shown as those of a call are.
struct Shown<'a> {
    progress: &'a Progress,
    about: &'a str,
    begun: Instant,
    stage: Cell<Option<Part>>,
}

impl Shown<'_> {
    fn say(&self, stage: Part, state: StageState, note: &str) {
        let at_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (name, about, note) = (stage.name().to_owned(), self.about.to_owned(), note.to_owned());
        self.progress.stage(&Stage { name, state, at_us, about, note, usual_us: None });
    }

    fn end(&self) {
        if let Some(stage) = self.stage.take() {
            self.say(stage, StageState::Ended, "");
        }
    }
}

impl Watch for Shown<'_> {
    fn begin(&self, stage: Part, note: &str) {
        if self.stage.get() != Some(stage) {
            self.end();
            self.stage.set(Some(stage));
            self.say(stage, StageState::Begun, note);
        }
    }

    /// Whoever interrupts this process ends the programs that it started: they die with it.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Makes the default image and a kernel where a VM that names none would find none. On a terminal that is asked first.
pub(crate) fn need_default(reach: &Reach, image: bool, kernel: bool) -> Result<(), Problem> {
    let about: About = reach.ask(Request::ImageAbout {})?;
    let (image, kernel) = (image && !about.has_image, kernel && !about.has_kernel);
    let what = match (image, kernel) {
        (false, false) => return Ok(()),
        (true, true) => format!("no image and no kernel yet: {} and Debian's kernel", about.default_image),
        (true, false) => format!("no image yet: {}", about.default_image),
        (false, true) => "no kernel yet: Debian's".to_owned(),
    };
    let what = format!("{what} will be made of packages from this machine's mirror: about a minute, 250M");
    if !manner::yes() && manner::no_input() {
        return Err(manner::unasked("an image and a kernel may be made", "--yes").why(what));
    }
    match if manner::yes() { None } else { manner::ask(&format!("{what}. Go on? [Y/n] ")) } {
        None => output::ours(&format!("{what}\n")),
        Some(answer) if !answer.is_empty() && matches!(answer.trim(), "" | "y" | "Y" | "yes") => {}
        Some(_) => {
            let what = "a VM needs an image and a kernel";
            return Err(Problem::of_fault(
                Fault::new("no_image", exit::MISSING, what).fix(format!("banger image build {}", about.default_image)),
            ));
        }
    }
    if kernel {
        reach.ask::<Asset>(Request::KernelFetch { name: None, version: None, force: true })?;
    }
    if image {
        let done = build(reach, &about, &about.default_image, &Recipe::default(), false);
        // Somebody else's run may have made it meanwhile.
        done.map(drop).or_else(|problem| if problem.is("name_taken") { Ok(()) } else { Err(problem) })?;
    }
    Ok(())
}
