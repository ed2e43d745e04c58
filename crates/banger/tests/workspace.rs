//! A git work tree into a VM and its changes back, as a user meets it; the guest has no git.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests needs a part of it")]
mod world;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use world::*;

const HOME: &str = "/mnt/home";
const PROJECT: &str = "/mnt/home/hello";

/// The owner's git.
fn git(dir: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(["-c", "user.name=Owner", "-c", "user.email=owner@example.org"]).args(arguments);
    let out = command.env("HOME", HOME).uid(OWNER).gid(OWNER).output().expect("git");
    assert!(out.status.success(), "git {arguments:?}: {}", text(&out.stderr));
    text(&out.stdout).to_owned()
}

/// `banger` in the project's directory.
fn here(arguments: &[&str]) -> Output {
    banger(arguments).current_dir(PROJECT).env("HOME", HOME).output().expect("banger")
}

fn here_ok(arguments: &[&str]) -> String {
    let out = here(arguments);
    assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
    text(&out.stdout).to_owned()
}

/// A small C project, with something that is not committed.
fn project() {
    fs::create_dir_all(format!("{PROJECT}/src")).unwrap();
    let main = "#include <stdio.h>\n\nint main(void)\n{\n\tputs(\"helo\");\n\treturn 0;\n}\n";
    for (file, content) in [
        ("src/main.c", main),
        ("Makefile", "test: hello\n\t./hello | grep -q hello\n\nhello: src/main.c\n\t$(CC) -o $@ $<\n"),
        (".gitignore", "/hello\n/built/\n*.o\n"),
        ("README", "A greeting.\n"),
        ("notes", "mine alone\n"),
    ] {
        fs::write(format!("{PROJECT}/{file}"), content).unwrap();
    }
    for path in [HOME, PROJECT, &format!("{PROJECT}/src")] {
        chown(path, Some(OWNER), Some(OWNER)).unwrap();
    }
    git(PROJECT, &["init", "-q", "-b", "trunk"]);
    git(PROJECT, &["add", "src", "Makefile", ".gitignore", "README"]);
    git(PROJECT, &["commit", "-q", "-m", "A greeting"]);
    fs::write(format!("{PROJECT}/README"), "A greeting, of mine.\n").unwrap();
}

#[test]
fn a_work_tree_goes_in_and_its_changes_come_back() {
    isolated("a_work_tree_goes_in_and_its_changes_come_back", |_| {
        project();
        ok(&["vm", "create", "web", "--memory", "256M"]);
        let out = here(&["vm", "workspace", "web"]);
        assert!(
            out.status.code() == Some(4) && text(&out.stderr).contains("error[not_running]"),
            "{}",
            text(&out.stderr)
        );
        ok(&["vm", "start", "web"]);
        let dry: Value = serde_json::from_str(&here_ok(&["vm", "workspace", "web", "--dry-run", "--json"])).unwrap();
        assert_eq!((&dry["files"], &dry["changed"], &dry["untracked_left_out"]), (&4.into(), &1.into(), &1.into()));
        assert_eq!(run(&["vm", "exec", "web", "test", "-e", "/root/hello"]).status.code(), Some(1));
        assert_eq!(field("web", "/workspace"), Value::Null);
        // The same of a run's, of which nothing is made either.
        let arguments = ["vm", "run", ".", "--memory", "256M", "--dry-run", "--json", "--", "make"];
        let planned: Value = serde_json::from_str(&here_ok(&arguments)).unwrap();
        let (name, mut ships) = (planned["name"].clone(), planned["workspace"].clone());
        assert_eq!((&ships["vm"], &ships["dry_run"]), (&name, &true.into()));
        (ships["vm"], ships["ms"]) = (dry["vm"].clone(), dry["ms"].clone());
        assert_eq!(ships, dry);
        let said = here_ok(&["vm", "run", ".", "--memory", "256M", "--dry-run", "--", "make"]);
        assert!(said.contains("  4 files, ") && said.contains(", 1 changed, 1 untracked left out"), "{said}");
        assert_eq!(ok(&["vm", "list", "--quiet"]), "web\n");

        assert_eq!(here_ok(&["vm", "workspace", "push", "web"]), "/root/hello\n");
        let commit = git(PROJECT, &["rev-parse", "HEAD"]);
        assert_eq!(field("web", "/workspace/commit"), commit.trim());
        assert_eq!(field("web", "/workspace/unpulled"), false);
        let listed = "cd /root/hello && find . -path ./.git -prune -o -type f -print | sort && cat README";
        let want = "./.gitignore\n./Makefile\n./README\n./src/main.c\nA greeting, of mine.\n";
        assert_eq!(ok(&["vm", "exec", "web", "--", "sh", "-c", listed]), want);

        let change =
            "cd /root/hello && sed -i s/helo/hello/ src/main.c && echo added >new && rm Makefile && echo x >hello";
        ok(&["vm", "exec", "web", "--", "sh", "-c", change]);
        // A git of the guest's that lies, its settings and its hooks: none of them is asked, by a pull or a push.
        let lies = "printf '#!/bin/sh\\ntouch /root/git-ran\\n' >/usr/local/bin/git && chmod 755 /usr/local/bin/git && \
            mkdir -p /root/hello/.git/hooks && cp /usr/local/bin/git /root/hello/.git/hooks/post-index-change && \
            printf '[core]\\n\\tfsmonitor = /usr/local/bin/git\\n' >>/root/hello/.git/config";
        ok(&["vm", "exec", "web", "--", "sh", "-c", lies]);
        // What the owner ignores isn't even looked at: this would be too deep to come, whatever the guest's own rules are.
        let deep = "cd /root/hello && mkdir -p built/$(yes d/ | head -200 | tr -d '\\n') && echo >.git/info/exclude";
        ok(&["vm", "exec", "web", "--", "sh", "-c", deep]);
        let refused = |arguments: &[&str], code: &str| {
            let out = here(arguments);
            assert_eq!(out.status.code(), Some(4), "{arguments:?}");
            let said = text(&out.stderr).to_owned();
            assert!(said.starts_with(&format!("error[{code}]")), "{said}");
            said
        };
        let said = refused(&["vm", "rm", "-f", "web"], "changes_not_pulled");
        assert!(said.contains("banger vm workspace pull web") && said.contains("--discard-changes"), "{said}");
        let said = refused(&["vm", "workspace", "push", "web"], "changes_not_pulled");
        assert!(said.contains("src/main.c") && said.contains("Makefile"), "{said}");

        // As a patch: git puts it onto a copy of the work tree.
        let patch = format!("{HOME}/patch");
        here_ok(&["vm", "workspace", "pull", "web", "--patch", &patch]);
        let printed = here_ok(&["vm", "workspace", "pull", "web", "--patch", "-"]);
        assert_eq!(fs::read_to_string(&patch).unwrap(), printed);
        refused(&["vm", "workspace", "pull", "web", "--patch", &patch], "file_there");
        git(HOME, &["clone", "-q", "hello", "copy"]);
        let copy = format!("{HOME}/copy");
        git(&copy, &["apply", &patch]);
        assert_eq!(git(&copy, &["status", "--porcelain"]), " D Makefile\n M src/main.c\n?? new\n");
        assert!(fs::read_to_string(format!("{copy}/src/main.c")).unwrap().contains("hello"));

        // As a branch: the work tree stays as it is.
        let before = git(PROJECT, &["status", "--porcelain"]);
        let out = here(&["vm", "workspace", "pull", "web"]);
        assert_eq!(text(&out.stderr), "3 files, +2 −6 on banger/web; git merge banger/web\n");
        assert_eq!(git(PROJECT, &["status", "--porcelain"]), before);
        let names = git(PROJECT, &["diff", "--name-status", "trunk", "banger/web"]);
        assert_eq!(names, "D\tMakefile\nA\tnew\nM\tsrc/main.c\n");
        assert_eq!(git(PROJECT, &["rev-parse", "banger/web^"]), commit);
        git(PROJECT, &["fsck", "--strict"]);
        let again: Value = serde_json::from_str(&here_ok(&["vm", "workspace", "pull", "web", "--json"])).unwrap();
        assert_eq!(again["commit"], git(PROJECT, &["rev-parse", "banger/web"]).trim());

        // The owner goes on; what he removed goes there too, and what was built there stays.
        fs::remove_file(format!("{PROJECT}/README")).unwrap();
        here_ok(&["vm", "workspace", "web"]);
        let listed = "cd /root/hello && ls && ls src";
        assert_eq!(run(&["vm", "exec", "web", "test", "-e", "/root/git-ran"]).status.code(), Some(1));
        assert_eq!(ok(&["vm", "exec", "web", "--", "sh", "-c", listed]), "Makefile\nbuilt\nhello\nnew\nsrc\nmain.c\n");

        // A removal without a word, once nothing can be lost.
        ok(&["vm", "stop", "web"]);
        let said = refused(&["vm", "rm", "web"], "changes_not_pulled");
        assert!(said.contains("banger vm start web; banger vm workspace pull web"), "{said}");
        let out = here(&["vm", "prune", "--all", "-f"]);
        assert!(text(&out.stderr).starts_with("web stays: it may hold changes"), "{}", text(&out.stderr));
        ok(&["vm", "start", "web"]);
        here_ok(&["vm", "workspace", "pull", "web"]);
        ok(&["vm", "stop", "web"]);
        ok(&["vm", "rm", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// The guest's image was built with `--include gcc,make`: what is built and tested there comes back as a patch.
#[test]
fn a_project_is_mended_and_tested_in_a_guest() {
    isolated_with_packages("a_project_is_mended_and_tested_in_a_guest", |_| {
        project();
        ok(&["vm", "create", "web", "--memory", "512M"]);
        ok(&["vm", "start", "web"]);
        assert_eq!(here_ok(&["vm", "workspace", "web"]), "/root/hello\n");
        let out = here(&["vm", "exec", "web", "make", "test"]);
        assert_eq!(out.status.code(), Some(2), "it says helo: {}", text(&out.stderr));
        assert!(text(&out.stdout).contains("cc -o hello src/main.c"), "{}", text(&out.stdout));
        ok(&["vm", "exec", "web", "sed", "-i", "s/helo/hello/", "src/main.c"]);
        assert_eq!(
            here_ok(&["vm", "exec", "web", "make", "test"]),
            "cc -o hello src/main.c\n./hello | grep -q hello\n"
        );

        let patch = format!("{HOME}/mended.patch");
        here_ok(&["vm", "workspace", "pull", "web", "--patch", &patch]);
        let before = git(PROJECT, &["diff", "--numstat"]);
        git(PROJECT, &["apply", &patch]);
        assert_eq!(git(PROJECT, &["diff", "--numstat"]), format!("{before}1\t1\tsrc/main.c\n"));
        let built = Command::new("make").args(["-C", PROJECT, "test"]).uid(OWNER).gid(OWNER).output().expect("make");
        assert!(built.status.success(), "and it is mended here: {}", text(&built.stderr));
        ok(&["vm", "rm", "-f", "web"]);

        // The same in one command, on a tree that is good now.
        let out = here(&["vm", "run", ".", "--memory", "512M", "--", "make", "test"]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// The repository that this test is of, in a guest and listed there.
#[test]
fn this_projects_own_tree_is_shipped() {
    isolated("this_projects_own_tree_is_shipped", |_| {
        fs::create_dir(HOME).unwrap();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let to = format!("{HOME}/banger");
        let cloned = Command::new("git").args(["-c", "safe.directory=*", "clone", "-q"]).arg(own).arg(&to).status();
        assert!(cloned.unwrap().success());
        let given = Command::new("chown").args(["-R", &format!("{OWNER}:{OWNER}"), HOME]).status();
        assert!(given.unwrap().success());
        let files = git(&to, &["ls-files"]);
        let shipped = |arguments: &[&str]| -> Value {
            let out = banger(arguments).current_dir(&to).env("HOME", HOME).output().unwrap();
            assert!(out.status.success(), "{}", text(&out.stderr));
            serde_json::from_slice(&out.stdout).unwrap()
        };
        ok(&["vm", "create", "web", "--memory", "256M"]);
        ok(&["vm", "start", "web"]);
        let told = shipped(&["vm", "workspace", "web", "--json"]);
        assert_eq!(told["files"], files.lines().count());
        assert_eq!((&told["changed"], &told["left_out"]), (&0.into(), &Value::Array(vec![])));
        let listed = "cd /root/banger && find . -path ./.git -prune -o ! -type d -print | sed s,^./,, | LC_ALL=C sort";
        assert_eq!(ok(&["vm", "exec", "web", "--", "sh", "-c", listed]), files);
        let none = shipped(&["vm", "workspace", "pull", "web", "--json"]);
        assert_eq!((&none["files"], &none["branch"]), (&0.into(), &Value::Null));
        ok(&["vm", "rm", "-f", "web"]);
    });
}

#[test]
fn a_run_takes_its_directory_along() {
    isolated("a_run_takes_its_directory_along", |_| {
        project();
        // All of the tree goes, the command runs in the directory that was named, and its changes come back.
        let script = "pwd; cat ../README; sed -i s/helo/hello/ main.c; exit 3";
        let out = here(&["vm", "run", "src", "--pull", "--memory", "256M", "--", "sh", "-c", script]);
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert_eq!(text(&out.stdout), "/root/hello/src\nA greeting, of mine.\n");
        let branch = git(PROJECT, &["for-each-ref", "--format=%(refname:short)", "refs/heads/banger"]);
        let branch = branch.trim();
        assert_eq!(text(&out.stderr), format!("1 file, +1 −1 on {branch}; git merge {branch}\n"));
        assert_eq!(git(PROJECT, &["diff", "--name-only", "trunk", branch]), "src/main.c\n");
        assert_eq!(left(), Vec::<String>::new());

        // As a patch; and of a branch that isn't checked out here.
        git(PROJECT, &["checkout", "-q", "--", "README"]);
        git(PROJECT, &["merge", "-q", branch]);
        let patched = [
            "vm",
            "run",
            ".",
            "--branch",
            "work",
            "--from",
            "trunk~1",
            "--pull=patch",
            "--memory",
            "256M",
            "--name",
            "db",
        ];
        let script = "cat .git/HEAD; grep puts src/main.c; echo more >>README";
        let out = here(&[&patched[..], &["--rm", "--", "sh", "-c", script]].concat());
        assert_eq!(text(&out.stdout), "ref: refs/heads/work\n\tputs(\"helo\");\n", "{}", text(&out.stderr));
        git(PROJECT, &["apply", "db.patch"]);
        assert_eq!(fs::read_to_string(format!("{PROJECT}/README")).unwrap(), "A greeting.\nmore\n");
        assert_eq!(left(), Vec::<String>::new());

        // What can't be is said before anything is made.
        for arguments in [&["none"][..], &["/mnt"], &["--branch", "x"], &[".", "--branch", "a..b"], &["--pull"]] {
            let out = here(&[&["vm", "run"], arguments, &["--", "true"]].concat());
            assert_eq!(out.status.code(), Some(125), "{arguments:?}: {}", text(&out.stderr));
            assert_eq!(left(), Vec::<String>::new());
        }

        // One that stays: its commands run in the directory, and the work tree here may go on.
        let out = here(&["vm", "run", ".", "--name", "web", "--memory", "256M", "--", "sh", "-c", "echo x >>README"]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        assert_eq!(ok(&["vm", "exec", "web", "pwd"]), "/root/hello\n");
        assert_eq!(ok(&["vm", "exec", "-w", "/", "web", "pwd"]), "/\n");
        assert_eq!(said_here(&["vm", "exec", "web", "true"]), "");
        git(PROJECT, &["commit", "-q", "-a", "-m", "More"]);
        assert!(said_here(&["vm", "exec", "web", "true"]).starts_with("web has /mnt/home/hello of "));
        let out = here(&["vm", "exec", "--auto-prepare", "web", "true"]);
        assert_eq!(out.status.code(), Some(125));
        assert!(text(&out.stderr).contains("README"), "what was changed there stays: {}", text(&out.stderr));
        here_ok(&["vm", "workspace", "pull", "web"]);
        let head = git(PROJECT, &["rev-parse", "HEAD"]);
        let out =
            here_ok(&["vm", "exec", "--auto-prepare", "web", "--", "sh", "-c", "cat .git/refs/heads/trunk README"]);
        assert_eq!(out, format!("{head}A greeting.\nmore\n"));
        assert_eq!(run(&["vm", "rm", "-f", "web"]).status.code(), Some(4));
        ok(&["vm", "rm", "-f", "--discard-changes", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// What it says on standard error, when it succeeds.
fn said_here(arguments: &[&str]) -> String {
    let out = here(arguments);
    assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
    text(&out.stderr).to_owned()
}
