//! Trees out and back, compared by git itself, and trees that are made to do harm.

use super::pull::{NewBranch, Size};
use super::push::{Depth, Ready, Wanted};
use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

const MAIN: &str = "#include <stdio.h>\n\nint main(void)\n{\n\tputs(\"helo\");\n\treturn 0;\n}\n";

/// A work tree of the owner's, a VM's folder, and what stands for the guest's disk.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn make() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let host = place.host();
        fs::create_dir_all(host.join("src")).unwrap();
        fs::write(host.join("src/main.c"), MAIN).unwrap();
        fs::write(host.join("Makefile"), "test: main\n\t./main | grep hello\n").unwrap();
        fs::write(host.join(".gitignore"), "*.o\nmain\n").unwrap();
        fs::write(host.join("run.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(host.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
        symlink("src/main.c", host.join("link")).unwrap();
        symlink("/usr/include", host.join("outside")).unwrap();
        place.git(&["init", "-q", "-b", "trunk"]);
        place.git(&["config", "user.name", "Owner"]);
        place.git(&["config", "user.email", "owner@example.org"]);
        place.git(&["add", "-A"]);
        place.git(&["commit", "-q", "-m", "one"]);
        place
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("proj")
    }

    fn guest(&self) -> PathBuf {
        self.dir.path().join("guest")
    }

    fn folder(&self) -> Folder {
        Folder::open(&self.dir.path().join("vm/workspace")).unwrap()
    }

    fn git(&self, arguments: &[&str]) -> String {
        git_in(&self.host(), arguments)
    }

    fn wanted(&self) -> Wanted<'static> {
        Wanted {
            path: Box::leak(self.host().into_boxed_path()),
            to: None,
            branch: None,
            from: None,
            include_untracked: false,
            depth: Depth::Shallow,
            readonly: false,
        }
    }

    /// Ships it: the tree lies at the guest's place then.
    fn push(&self, folder: &Folder, wanted: &Wanted<'_>) -> Ready {
        let ready = push::ready(wanted, folder).unwrap();
        ready.leaves(folder).unwrap();
        let from = ready.root().join(ready.shipped.guest.trim_start_matches('/')).join(".");
        fs::create_dir_all(self.guest()).unwrap();
        run(Command::new("cp").arg("-a").args([&from, &self.guest()]));
        ready.arrived(folder).unwrap();
        ready
    }

    /// What came back; the guest's own tree stays as it is.
    fn pull(&self, folder: &Folder, commit: &str, base: Option<&str>) -> Result<pull::Pulled, Fault> {
        let came = self.dir.path().join("came");
        let _ = fs::remove_dir_all(&came);
        run(Command::new("cp").arg("-a").args([&self.guest(), &came]));
        pull::take(folder, &came, &self.host(), commit, base)
    }
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The user's own git, with nothing of his machine's.
fn git_in(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    run(command.args(arguments))
}

fn branch<'a>(name: &'a str, last: Option<&'a str>) -> NewBranch<'a> {
    NewBranch { name, vm: "web", last, force: false }
}

#[test]
fn a_tree_goes_out_and_its_changes_come_back() {
    let place = Place::make();
    fs::write(place.host().join("Makefile"), "# mine\n").unwrap();
    fs::write(place.host().join("notes"), "not for git\n").unwrap();
    fs::write(place.host().join("main"), "ignored\n").unwrap();
    let folder = place.folder();
    let shipped = place.push(&folder, &place.wanted()).shipped.clone();
    assert_eq!(shipped.guest, "/root/proj");
    assert_eq!((shipped.files, shipped.changed, shipped.untracked), (6, 1, 1));
    assert_eq!(shipped.commit, place.git(&["rev-parse", "HEAD"]).trim());
    assert_eq!(shipped.branch.as_deref(), Some("trunk"));

    // A repository that the guest's git can use: the commit, its branch, the owner's change as one that is not committed.
    let guest = place.guest();
    assert_eq!(git_in(&guest, &["status", "--porcelain"]), " M Makefile\n");
    assert_eq!(git_in(&guest, &["log", "--format=%s", "trunk"]), "one\n");
    git_in(&guest, &["fsck", "--strict"]);
    assert!(!guest.join("notes").exists() && !guest.join("main").exists());
    run(Command::new("sha256sum").current_dir(&guest).args(["--quiet", "-c", ".git/banger-sums"]));

    // Nothing yet.
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    assert_eq!((pulled.size().unwrap(), pulled.left_out), (Size::default(), vec![]));

    fs::write(guest.join("src/main.c"), MAIN.replace("helo", "hello")).unwrap();
    fs::write(guest.join("Makefile"), "# mine\n# the guest's\n").unwrap();
    fs::write(guest.join("new\nname"), b"\0\xff").unwrap();
    fs::write(guest.join("main.o"), "ignored").unwrap();
    fs::remove_file(guest.join("run.sh")).unwrap();
    // What the guest commits is no other thing.
    git_in(&guest, &["-c", "user.name=g", "-c", "user.email=g", "commit", "-q", "-a", "-m", "in the guest"]);
    let before = place.git(&["status", "--porcelain"]);
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    assert_eq!(pulled.size().unwrap(), Size { files: 4, added: 2, deleted: 2 });
    assert_eq!(pulled.left_out, []);

    // As a patch: git applies it to a copy of the work tree, which is as the guest's then.
    let mut patch = Vec::new();
    pulled.patch(&mut patch).unwrap();
    let copy = place.dir.path().join("copy");
    run(Command::new("cp").arg("-a").args([&place.host(), &copy]));
    fs::write(place.dir.path().join("patch"), &patch).unwrap();
    git_in(&copy, &["apply", "../patch"]);
    for file in ["src/main.c", "Makefile", "new\nname"] {
        assert_eq!(fs::read(copy.join(file)).unwrap(), fs::read(guest.join(file)).unwrap(), "{file}");
    }
    assert!(!copy.join("run.sh").exists());

    // As a branch: nothing that is checked out changes.
    let made = pulled.branch(&branch("banger/web", None)).unwrap();
    assert_eq!((made.own, made.unchanged), (1, false));
    assert_eq!(place.git(&["status", "--porcelain"]), before);
    assert_eq!(place.git(&["rev-parse", "banger/web"]).trim(), made.commit);
    place.git(&["fsck", "--strict"]);
    let names = place.git(&["diff", "--name-only", "-z", "banger/web^", "banger/web"]);
    assert_eq!(names, "Makefile\0new\nname\0run.sh\0src/main.c\0");
    assert_eq!(place.git(&["show", "banger/web^:Makefile"]), "# mine\n");
    assert_eq!(place.git(&["merge-base", "trunk", "banger/web"]).trim(), shipped.commit);
    assert_eq!(place.git(&["log", "-1", "--format=%an %s", "banger/web"]), "Owner Changes made in the VM web\n");

    // Once more: nothing new, then something on top.
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    let again = pulled.branch(&branch("banger/web", Some(&made.commit))).unwrap();
    assert!(again.unchanged && again.commit == made.commit);
    fs::write(guest.join("src/main.c"), MAIN).unwrap();
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    let more = pulled.branch(&branch("banger/web", Some(&made.commit))).unwrap();
    assert_eq!(place.git(&["rev-parse", "banger/web^"]).trim(), made.commit);
    assert_eq!(place.git(&["diff", "--name-only", "trunk", "banger/web"]), "Makefile\n\"new\\nname\"\nrun.sh\n");

    // Somebody else's branch of that name stays, unless it is forced; one that is checked out in any case.
    let taken = pulled.branch(&branch("banger/web", Some(&made.commit))).unwrap_err();
    assert_eq!(taken.code, "branch_taken");
    place.git(&["branch", "other"]);
    assert_eq!(pulled.branch(&branch("other", None)).unwrap_err().code, "branch_taken");
    pulled.branch(&NewBranch { force: true, ..branch("other", None) }).unwrap();
    assert_eq!(pulled.branch(&NewBranch { force: true, ..branch("trunk", None) }).unwrap_err().code, "checked_out");
    assert_eq!(pulled.branch(&branch("a..b", None)).unwrap_err().code, "usage");
    assert_ne!(more.commit, made.commit);

    // Into the work tree, where that is asked for, whole or not at all.
    fs::write(guest.join("src/main.c"), MAIN.replace("helo", "hello")).unwrap();
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    fs::write(place.host().join("Makefile"), "# another\n").unwrap();
    assert_eq!(pulled.apply().unwrap_err().code, "does_not_apply");
    assert_eq!(fs::read_to_string(place.host().join("src/main.c")).unwrap(), MAIN);
    fs::write(place.host().join("Makefile"), "# mine\n").unwrap();
    pulled.apply().unwrap();
    assert_eq!(fs::read(place.host().join("src/main.c")).unwrap(), fs::read(guest.join("src/main.c")).unwrap());
    assert!(!place.host().join("run.sh").exists());
}

#[test]
fn what_is_shipped_is_what_was_asked_for() {
    let place = Place::make();
    place.git(&["checkout", "-q", "-b", "side"]);
    fs::write(place.host().join("side"), "side\n").unwrap();
    place.git(&["add", "side"]);
    place.git(&["commit", "-q", "-m", "two"]);
    place.git(&["checkout", "-q", "trunk"]);
    fs::write(place.host().join("-rf"), "untracked\n").unwrap();
    fs::remove_file(place.host().join("run.sh")).unwrap();
    let folder = place.folder();

    let all = Wanted { include_untracked: true, depth: Depth::Full, to: Some("/srv/a b/"), ..place.wanted() };
    let ready = place.push(&folder, &all);
    assert_eq!((ready.shipped.files, ready.shipped.untracked, ready.shipped.changed), (6, 0, 1));
    assert_eq!(ready.shipped.guest, "/srv/a b");
    assert_eq!(fs::read_to_string(place.guest().join("-rf")).unwrap(), "untracked\n");
    assert!(!ready.has_gone);
    drop(ready);

    // Another branch, from its own commit: the work tree's files don't count. What the first push brought is to go.
    let side = Wanted { branch: Some("work"), from: Some("side"), ..place.wanted() };
    let ready = place.push(&folder, &side);
    assert_eq!((ready.shipped.files, ready.shipped.changed, ready.shipped.untracked), (7, 0, 0));
    assert!(ready.has_gone);
    let guest = place.guest();
    let gone = fs::read(guest.join(".git/banger-gone")).unwrap();
    assert_eq!(gone, b"./-rf\0");
    assert_eq!(git_in(&guest, &["log", "--format=%s"]), "two\n", "the one commit, of a shallow history");
    assert_eq!(git_in(&guest, &["status", "--porcelain", "-b"]), "## work\n?? -rf\n");
    drop(ready);

    let readonly = Wanted { readonly: true, path: &place.host().join("src"), ..place.wanted() };
    let ready = push::ready(&readonly, &folder).unwrap();
    assert_eq!(ready.shipped.below, "src");
    let mode = fs::metadata(ready.root().join("root/proj/src/main.c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    drop(ready);

    let code = |wanted: &Wanted<'_>| push::ready(wanted, &folder).unwrap_err().code;
    assert_eq!(code(&Wanted { path: place.dir.path(), ..place.wanted() }), "no_work_tree");
    assert_eq!(code(&Wanted { path: &place.host().join("none"), ..place.wanted() }), "usage");
    assert_eq!(code(&Wanted { branch: Some("x"), from: Some("--all"), ..place.wanted() }), "no_such_commit");
    assert_eq!(code(&Wanted { branch: Some("-x"), ..place.wanted() }), "usage");
    for to in ["", "/", "root/x", "/a/../b", "/a//b", "/a/.git", "/a\nb"] {
        assert_eq!(code(&Wanted { to: Some(to), ..place.wanted() }), "usage", "{to:?}");
    }
    // Nothing half-made is left, and two at once are one.
    let left: Vec<_> = fs::read_dir(&folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(Folder::open(&folder.path).unwrap_err().code, "busy");
    // A push that was cut off is said.
    let ready = push::ready(&place.wanted(), &folder).unwrap();
    ready.leaves(&folder).unwrap();
    assert_eq!(place.pull(&folder, &ready.shipped.commit, None).unwrap_err().code, "workspace_cut");
}

#[test]
fn submodules_and_other_repositories_stay_here() {
    let place = Place::make();
    let other = Place::make();
    let url = other.host();
    place.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url.to_str().unwrap(), "sub"]);
    place.git(&["commit", "-q", "-m", "with a submodule"]);
    run(Command::new("cp").arg("-a").args([&url, &place.host().join("nested")]));
    let folder = place.folder();
    let shipped = place.push(&folder, &Wanted { include_untracked: true, ..place.wanted() }).shipped.clone();
    let left: Vec<(&str, &str)> = shipped.left_out.iter().map(|left| (left.path.as_str(), left.why)).collect();
    assert_eq!(left, [("nested/", "another repository"), ("sub", "another repository")]);
    assert_eq!(shipped.changed, 0);
    assert!(!place.guest().join("sub").exists());
    // And the submodule stays one on the branch.
    fs::write(place.guest().join("Makefile"), "new\n").unwrap();
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    assert_eq!(pulled.size().unwrap().files, 1);
    pulled.branch(&branch("banger/web", None)).unwrap();
    assert_eq!(place.git(&["diff", "--name-only", "trunk", "banger/web"]), "Makefile\n");
}

/// What a guest makes of its tree to have something run here, or to write elsewhere.
#[test]
fn a_hostile_tree_is_data() {
    let place = Place::make();
    let proof = place.dir.path().join("executed");
    let touch = format!("touch {}", proof.display());
    let folder = place.folder();
    let shipped = place.push(&folder, &place.wanted()).shipped.clone();
    let guest = place.guest();

    // The guest's own git directory: every way to have a program run by it.
    fs::create_dir_all(guest.join(".git/hooks")).unwrap();
    for hook in ["post-checkout", "pre-commit", "post-index-change", "reference-transaction", "fsmonitor-watchman"] {
        fs::write(guest.join(".git/hooks").join(hook), format!("#!/bin/sh\n{touch}\n")).unwrap();
        fs::set_permissions(guest.join(".git/hooks").join(hook), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let config = format!(
        "[core]\n\tfsmonitor = {touch}\n\tpager = {touch}\n\teditor = {touch}\n[filter \"x\"]\n\tclean = {touch}\n\tsmudge = {touch}\n\
         \tprocess = {touch}\n\trequired = true\n[diff \"x\"]\n\ttextconv = {touch}\n\tcommand = {touch}\n[diff]\n\texternal = {touch}\n"
    );
    fs::write(guest.join(".git/config"), &config).unwrap();
    // The owner has such drivers too, and hooks: what a guest names in its attributes is still not run.
    for (key, value) in [
        ("filter.x.clean", "clean"),
        ("filter.x.smudge", "smudge"),
        ("diff.x.textconv", "textconv"),
        ("diff.x.command", "command"),
    ] {
        place.git(&["config", key, &format!("{touch}-{value}")]);
    }
    place.git(&["config", "diff.external", &touch]);
    place.git(&["config", "core.fsmonitor", &touch]);
    let hook = place.host().join(".git/hooks/reference-transaction");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, format!("#!/bin/sh\n{touch}\n")).unwrap();
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(guest.join(".gitattributes"), "* filter=x diff=x text eol=crlf ident working-tree-encoding=UTF-16\n")
        .unwrap();

    // More repositories, in every spelling, and links that lead out.
    fs::create_dir_all(guest.join("a/.git/hooks")).unwrap();
    fs::write(guest.join("a/.git/config"), &config).unwrap();
    fs::write(guest.join("a/file"), "kept\n").unwrap();
    fs::create_dir(guest.join(".GIT ")).unwrap();
    fs::write(guest.join("b.git"), "kept\n").unwrap();
    fs::write(guest.join("a/.g\u{200c}it"), "gitdir: /\n").unwrap();
    fs::write(guest.join("GIT~1"), "").unwrap();
    symlink("/etc/passwd", guest.join("passwd")).unwrap();
    symlink("../../up", guest.join("a/up")).unwrap();
    symlink(".git/hooks", guest.join("hooks")).unwrap();
    symlink("x", guest.join(".gitmodules")).unwrap();
    symlink("a/file", guest.join("fine")).unwrap();
    // A directory in the place of a file and the other way round, a link in the place of a directory.
    fs::remove_file(guest.join("run.sh")).unwrap();
    fs::create_dir(guest.join("run.sh")).unwrap();
    fs::write(guest.join("run.sh/inner"), "x").unwrap();
    fs::remove_dir_all(guest.join("src")).unwrap();
    symlink("a", guest.join("src")).unwrap();
    // Names that mean something to shells, git and terminals.
    for name in ["-rf", "--upload-pack=x", "new\nline", "esc\u{1b}[2J", ":(top)x", "\"quoted\"", " blank ", "*"] {
        fs::write(guest.join(name), "data\n").unwrap();
    }
    fs::write(guest.join(OsStr::from_bytes(b"\xff\xfe")), "not UTF-8\n").unwrap();
    fs::write(guest.join("closed"), "closed\n").unwrap();
    fs::set_permissions(guest.join("closed"), PermissionsExt::from_mode(0o0)).unwrap();
    run(Command::new("mkfifo").arg(guest.join("fifo")));

    let status = place.git(&["-c", "core.fsmonitor=false", "status", "--porcelain"]);
    let _ = fs::remove_file(&proof);
    let pulled = place.pull(&folder, &shipped.commit, None).unwrap();
    let left: Vec<(&str, &str)> = pulled.left_out.iter().map(|left| (left.path.as_str(), left.why)).collect();
    let link = "a link that leads out of the tree";
    let read = "a link in the place of a file that git reads";
    let mut want = vec![
        (".GIT ", "git's own"),
        ("GIT~1", "git's own"),
        ("a/.git", "git's own"),
        (r"a/.g\u{200c}it", "git's own"),
        ("a/up", link),
        ("fifo", "not a file"),
        ("hooks", link),
        ("passwd", link),
        (".gitmodules", read),
    ];
    want.sort_unstable();
    let mut left = left;
    left.sort_unstable();
    assert_eq!(left, want);
    let mut patch = Vec::new();
    pulled.patch(&mut patch).unwrap();
    assert!(!patch.contains(&0x1b), "names in a patch are escaped");
    let made = pulled.branch(&branch("banger/web", None)).unwrap();
    assert!(!proof.exists(), "nothing was executed");
    assert_eq!(
        place.git(&["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "status", "--porcelain"]),
        status
    );
    let listed = place.git(&["ls-tree", "-r", "--name-only", "-z", &made.commit]);
    let listed: Vec<&str> = listed.split_terminator('\0').collect();
    for name in
        ["a/file", "b.git", "fine", "run.sh/inner", "src", "-rf", "new\nline", "esc\u{1b}[2J", "*", "outside", "closed"]
    {
        assert!(listed.contains(&name), "{name}: {listed:?}");
    }
    assert!(!listed.iter().any(|name| name.to_lowercase().contains(".git/") || *name == "src/main.c"), "{listed:?}");
    // Bytes as they were, whatever the guest's attributes ask for.
    assert_eq!(place.git(&["cat-file", "blob", &format!("{}:a/file", made.commit)]), "kept\n");
    place.git(&["fsck", "--strict"]);
}
