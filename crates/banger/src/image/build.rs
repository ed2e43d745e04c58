//! Images: Debian, by mmdebstrap from the machine's own mirrors; and any root file system out of a tar archive.
//!
//! Both end in the same way: a tar archive becomes a tree in memory and files without names ([`super::tree`]), and the
//! tree an ext4 image ([`super::ext4`]). Neither needs root.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::debian::RELEASES;
use super::error::{Error, Kind};
use super::progress::{Stage, Watch};
use super::store::{self, Work};
use super::tree::Tree;
use super::{debian, ext4, packed, program};

/// What a guest needs beyond a minimal Debian.
const PACKAGES: [&str; 3] = ["iproute2", "iputils-ping", "openssh-server"];
/// Left out of images: nobody reads them in a throw-away machine.
const LEFT_OUT: [&str; 4] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// Room that a build takes on the way, beside what its extra packages take.
pub const BUILD_ROOM: u64 = 1200 << 20;
/// A script is an environment variable on its way, and the kernel lets none be longer than 128 KiB.
const MAX_SCRIPT: usize = 120 << 10;
/// An image's size where none is asked for; it takes what is written to it.
pub const DEFAULT_SIZE: u64 = 8 << 30;

/// What is to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Debian's code name of the release; the machine's own where there is none.
    pub suite: Option<String>,
    /// Packages beyond [`PACKAGES`].
    pub include: Vec<String>,
    /// A program that is run as root in the finished system, before it is packed.
    pub script: Option<String>,
    /// The image's size in bytes.
    pub size: u64,
    /// A mirror in the place of the machine's sources.
    pub mirror: Option<String>,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe { suite: None, include: Vec::new(), script: None, size: DEFAULT_SIZE, mirror: None }
    }
}

/// How mmdebstrap gets a root's rights over the tree that it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is root already.
    Root,
    /// It is root of a user namespace, over the caller's subordinate users (`/etc/subuid`).
    Namespace,
    /// Libraries between it and the kernel, fakeroot's and fakechroot's, let it think so.
    Fake,
}

impl Mode {
    /// What works here for the calling user: tried, not guessed.
    ///
    /// # Errors
    /// Nothing does.
    pub fn here() -> Result<Mode, Error> {
        if rustix::process::geteuid().is_root() {
            return Ok(Mode::Root);
        }
        let cause = match program::output(&mut as_namespace_root("true")) {
            Ok(_) => return Ok(Mode::Namespace),
            Err(cause) => cause,
        };
        if ["fakechroot", "fakeroot"].into_iter().all(program::is_here) {
            return Ok(Mode::Fake);
        }
        let what = "a Debian can't be built here without root: no user namespace with subordinate users";
        Err(Error::new(Kind::Machine, what)
            .why(cause)
            .fix("sudo apt install uidmap; sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$USER\"")
            .fix("or, slower: sudo apt install fakechroot"))
    }

    /// For a person.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Mode::Root => "as root",
            Mode::Namespace => "in a user namespace",
            Mode::Fake => "under fakechroot",
        }
    }

    fn mmdebstrap(self) -> Command {
        // In namespaces of its own neither a mount nor a process outlives it.
        let words = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--", "mmdebstrap", "--mode=root"];
        match self {
            Mode::Root => with(program::bound("unshare"), &words),
            Mode::Namespace => with(as_namespace_root("unshare"), &words),
            Mode::Fake => with(program::bound("mmdebstrap"), &["--mode=fakechroot"]),
        }
    }
}

fn with(mut command: Command, words: &[&str]) -> Command {
    command.args(words);
    command
}

/// A program as the root of a namespace of the caller and his subordinate users. It dies with the calling thread: that is
/// asked for inside, because the change of credentials on the way takes it back.
pub(crate) fn as_namespace_root(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--map-auto", "--", "setpriv", "--pdeathsig", "KILL", "--", program]);
    command
}

/// Builds a Debian; the image's file, in `work`.
///
/// # Errors
/// As [`debian`] and [`import`].
pub fn build(recipe: &Recipe, work: &Work, watch: &dyn Watch) -> Result<PathBuf, Error> {
    let archive = debian(recipe, work, watch)?;
    let open = File::open(&archive).map_err(|cause| Error::file("read", &archive, &cause))?;
    store::remove(&archive)?;
    import([open], recipe.size, Origin::Built, work, watch)
}

/// Builds a Debian as a tar archive; its file, in `work`.
///
/// # Errors
/// Something of the recipe can't be, the mirror doesn't answer, a package or the script fails, there is no room, the
/// watcher stopped it.
pub fn debian(recipe: &Recipe, work: &Work, watch: &dyn Watch) -> Result<PathBuf, Error> {
    check(recipe)?;
    if !program::is_here("mmdebstrap") {
        return Err(program::missing("mmdebstrap"));
    }
    let mode = Mode::here()?;
    let suite = match &recipe.suite {
        Some(suite) => suite.clone(),
        None => debian::release()?.to_owned(),
    };
    watch.begin(Stage::Fetch, &format!("Debian {suite}, {}", mode.words()));
    let archive = work.path().join("root.tar");
    bootstrap(mode, recipe, &suite, work, &archive, watch)?;
    Ok(archive)
}

/// Where archives come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From [`debian`]: what only one machine may have is taken out.
    Built,
    /// From a person, who knows what is in it.
    Given,
    /// An OCI image's layers, the lowest first.
    Layers,
}

/// Makes an image of a root file system in a tar archive, or in several layers, packed by gzip, XZ or zstd or not at all;
/// its file, in `work`.
///
/// # Errors
/// An archive is damaged or asks for what can't be, there is no room, the watcher stopped it.
pub fn import<R: Read>(
    archives: impl IntoIterator<Item = R>,
    size: u64,
    origin: Origin,
    work: &Work,
    watch: &dyn Watch,
) -> Result<PathBuf, Error> {
    watch.begin(Stage::Unpack, "");
    let mut tree = Tree::new(&work.folder("files")?, size);
    for archive in archives {
        let archive = packed::unpacked(archive)?;
        if origin == Origin::Layers { tree.layer(archive, watch)? } else { tree.unpack(archive, watch)? }
    }
    if origin == Origin::Built {
        tree.put(b"etc/hostname", 0o644, b"banger\n")?;
        without_identity(&mut tree)?;
    }
    of_tree(&tree, size, work, watch)
}

/// Makes an image of a tree whose files are below `work`; its file, in `work`.
pub(crate) fn of_tree(tree: &Tree, size: u64, work: &Work, watch: &dyn Watch) -> Result<PathBuf, Error> {
    // Its own bytes once more, and ext4's tables.
    store::need_room(work.path(), tree.bytes() + (128 << 20))?;
    let image = work.path().join("root.ext4");
    ext4::make(tree, &image, size, work.path(), watch)?;
    store::remove(tree.folder())?;
    Ok(image)
}

/// What each machine has to have of its own, no two may share.
fn without_identity(tree: &mut Tree) -> Result<(), Error> {
    tree.take(b"etc/ssh", |name| name.starts_with(b"ssh_host_"))?;
    tree.take(b"var/lib/dbus", |name| name == b"machine-id")?;
    tree.put(b"etc/machine-id", 0o444, b"")
}

fn bootstrap(
    mode: Mode,
    recipe: &Recipe,
    suite: &str,
    work: &Work,
    archive: &Path,
    watch: &dyn Watch,
) -> Result<(), Error> {
    let temporary = work.folder("tmp")?;
    let mut mmdebstrap = mode.mmdebstrap();
    mmdebstrap.env("TMPDIR", &temporary).args(["--format=tar", "--variant=apt"]);
    let packages = PACKAGES.into_iter().chain(recipe.include.iter().map(String::as_str));
    mmdebstrap.arg(format!("--include={}", packages.collect::<Vec<_>>().join(",")));
    // The tree is packed and removed; nobody needs it on the disk before.
    mmdebstrap.arg("--dpkgopt=force-unsafe-io");
    // What is only recommended stays out, but of tools to build with: a compiler without the C library's headers is none.
    mmdebstrap.arg("--aptopt=APT::Install-Recommends-Sections:: \"devel\"");
    for pattern in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for proxy in debian::proxies()? {
        mmdebstrap.arg(format!("--aptopt={}", proxy.trim_end_matches(';')));
    }
    if let Some(script) = &recipe.script {
        mmdebstrap.env("BANGER_SCRIPT", script).args([
            "--customize-hook=printf %s \"$BANGER_SCRIPT\" >\"$1/banger-script\" && chmod 0700 \"$1/banger-script\"",
            "--customize-hook=env -u BANGER_SCRIPT chroot \"$1\" /banger-script",
            "--customize-hook=rm \"$1/banger-script\"",
        ]);
    }
    mmdebstrap.arg(suite).arg(archive);
    let sources = debian::sources(suite);
    if let Some(mirror) = &recipe.mirror {
        mmdebstrap.arg(mirror);
    } else if !sources.is_empty() {
        mmdebstrap.args(sources.write_to(&temporary)?);
    } else if let Some(mirror) = debian::release().ok().and_then(|r| debian::sources(r).mirror().map(str::to_owned)) {
        // Another release, from the same place.
        mmdebstrap.arg(mirror);
    } else {
        return Err(Error::new(Kind::Request, format!("/etc/apt names no mirror of Debian {suite}"))
            .fix("--mirror http://deb.debian.org/debian"));
    }
    let stage = std::cell::Cell::new(Stage::Fetch);
    program::watched(&mut mmdebstrap, watch, |line| {
        if let Some(next) = stage_of(line).filter(|next| *next > stage.get()) {
            stage.set(next);
            watch.begin(next, "");
        }
    })
    .map_err(|error| if stage.get() == Stage::Fetch { debian::no_mirror(error) } else { error })?;
    store::remove(&temporary)
}

/// The stage that a line of mmdebstrap's begins.
fn stage_of(line: &str) -> Option<Stage> {
    let does = line.strip_prefix("I: ")?;
    let begins = [
        ("extracting archives", Stage::Unpack),
        ("installing", Stage::Configure),
        ("running --customize", Stage::Configure),
    ];
    begins.into_iter().find(|(words, _)| does.starts_with(words)).map(|(_, stage)| stage)
}

fn check(recipe: &Recipe) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::new(Kind::Request, what));
    if let Some(suite) = &recipe.suite {
        let plain = suite.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !plain || !suite.starts_with(|c: char| c.is_ascii_lowercase()) || suite.len() > 40 {
            return wrong(format!("{suite:?} is no release of Debian: {}", RELEASES.map(|(_, name)| name).join(", ")));
        }
    }
    for package in &recipe.include {
        let plain = package.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".+-:=~".contains(&b));
        if !plain || !package.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return wrong(format!("{package:?} is no name of a package"));
        }
    }
    if let Some(mirror) = &recipe.mirror {
        let known = ["http://", "https://", "file:/"].into_iter().any(|scheme| mirror.starts_with(scheme));
        if !known || !mirror.bytes().all(|b| b.is_ascii_graphic()) {
            return wrong(format!("{mirror:?} is no mirror: http://…, https://… or file:/…"));
        }
    }
    if recipe.script.as_ref().is_some_and(|script| script.len() > MAX_SCRIPT || script.contains('\0')) {
        return wrong(format!("the script is no text of at most {}K", MAX_SCRIPT >> 10));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
