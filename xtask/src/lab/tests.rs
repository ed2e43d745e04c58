//! `lab/test`: the tests that need the lab, out of all test programs of the workspace, in restored machines: two run side by side.
//!
//! A test asks for the lab by its name: it stands in a module `lab`. One that stands in a module `lab::nested` gets a
//! machine that has `/dev/kvm`. One in a module `lab::nested::firecracker` is over Firecracker itself, which is no part of
//! the project: it runs where variables name Firecracker's programs ([`THEIRS`]). One in `lab::nested::guests` boots the guest
//! whose files variables name ([`GUESTS`]). Each runs as a process of its own, in its package's folder, under the paths that it was
//! built with: programs of the workspace are where `env!("CARGO_BIN_EXE_…")` says.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::baggage::Item;
use super::machine::{Machine, Nested};
use super::{Request, children, enter};
use crate::console::Panic;
use crate::programs;

/// How long one test may take by the host's clock: the lab's own falls behind on a busy machine.
const TEST_LIMIT: Duration = Duration::from_secs(900);
/// For all of them together.
const LIMIT: Duration = Duration::from_secs(45 * 60);
/// So many machines run tests at once: each has one processor's work for most of its time.
const MACHINES: usize = 2;

/// Tests that take the better part of a minute or more.
const LONG: [&str; 4] = [
    "::two_hundred_snapshots_over_one_base",
    "::docker_and_firewalld_start_only_when_asked",
    "::resolver_step_that_fails_leaves_nothing_and_a_kill_can_be_mended",
    "::killed_at_any_moment_of_two_hundred_calls",
];

/// What ends a machine without any test's fault: docs/lab.md.
const PANICKED: &str = "the lab's kernel panicked in KVM under emulation";

/// Without these, tests over Firecracker itself do not run, and that is said.
const THEIRS: [&str; 3] = ["BANGER_TEST_FIRECRACKER", "BANGER_TEST_JAILER", "BANGER_TEST_ROOT_WITH"];
/// What names the files of a guest.
const GUESTS: [&str; 3] = ["BANGER_TEST_KERNEL", "BANGER_TEST_INITRD", "BANGER_TEST_ROOT"];

/// A test program, or another program of the workspace.
struct Built {
    program: PathBuf,
    /// The package's folder.
    folder: PathBuf,
    /// What it is called in the lines about its tests.
    name: String,
    is_test: bool,
}

/// A test that asks for the lab.
struct Test<'a> {
    of: &'a Built,
    name: String,
}

impl Test<'_> {
    fn nested(&self) -> Nested {
        if self.name.starts_with("lab::nested::") || self.name.contains("::lab::nested::") {
            Nested::Yes
        } else {
            Nested::No
        }
    }

    fn is_over_firecracker(&self) -> bool {
        self.name.contains("lab::nested::firecracker::")
    }

    fn boots_guests(&self) -> bool {
        self.is_over_firecracker() || self.name.contains("lab::nested::guests::")
    }
}

pub(super) fn run(request: Request) -> Result<i32> {
    let said = fs::read_to_string(&request.built).context("cargo's own account of what it built is missing")?;
    let built = built(&said)?;
    let mut tests = Vec::new();
    for of in built.iter().filter(|b| b.is_test) {
        let wanted = |n: &String| request.words.is_empty() || request.words.iter().any(|w| n.contains(w.as_str()));
        tests.extend(names(of)?.into_iter().filter(wanted).map(|name| Test { of, name }));
    }
    if tests.is_empty() && !request.words.is_empty() {
        bail!("no test of the lab's has a name with {}", request.words.join(" or "));
    }
    let missing: Vec<&str> = THEIRS.into_iter().filter(|name| std::env::var_os(name).is_none()).collect();
    let without: Vec<Test<'_>> =
        tests.extract_if(.., |test| !missing.is_empty() && test.is_over_firecracker()).collect();
    children::end_after(request.limit.max(LIMIT));
    // Those that take long begin first: the machines end at one time.
    let is_long = |test: &&Test<'_>| LONG.iter().any(|long| test.name.ends_with(long));
    let (long, short): (Vec<_>, Vec<_>) = tests.iter().filter(|test| test.nested() == Nested::No).partition(is_long);
    let plain = Mutex::new(long.into_iter().chain(short));
    let nested = Mutex::new(tests.iter().filter(|test| test.nested() == Nested::Yes));
    let panics = AtomicUsize::new(0);
    let passed = thread::scope(|scope| {
        let machines: Vec<_> = (0..MACHINES.min(tests.len()))
            .map(|_| {
                scope.spawn(|| {
                    let plain = run_queue(&request, Nested::No, &plain, &tests, &built, &panics)?;
                    Ok(plain + run_queue(&request, Nested::Yes, &nested, &tests, &built, &panics)?)
                })
            })
            .collect();
        let panicked = |_| Err(anyhow!("a machine's thread panicked"));
        machines.into_iter().map(|machine| machine.join().unwrap_or_else(panicked)).sum::<Result<usize>>()
    })?;
    let failed = tests.len() - passed;
    for test in &without {
        println!("     NOT RUN {} {}", test.of.name, test.name);
    }
    let mut counts = format!("{passed} passed, {failed} failed");
    if !without.is_empty() {
        let _ = write!(counts, ", {} not run: no {}", without.len(), missing.join(", no "));
    }
    match panics.into_inner() {
        0 => println!("{counts}"),
        count => println!("{counts}; {count} begun once more: {PANICKED}"),
    }
    Ok(i32::from(failed > 0))
}

/// What cargo built, out of its messages.
fn built(messages: &str) -> Result<Vec<Built>> {
    let mut all = Vec::new();
    for line in messages.lines().filter(|l| l.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo's messages can't be read")?;
        let (Some(program), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let folder = Path::new(manifest).parent().context("a package without a folder")?.to_owned();
        let package = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let name = if package == target { package } else { format!("{package}::{target}") };
        let is_test = message["profile"]["test"] == true;
        all.push(Built { program: program.into(), folder, name, is_test });
    }
    Ok(all)
}

/// The tests of a program that stand in a module `lab`.
fn names(of: &Built) -> Result<Vec<String>> {
    let mut list = Command::new(&of.program);
    list.args(["--list", "--format", "terse"]).current_dir(&of.folder);
    let said = programs::run(&mut list).with_context(|| format!("can't list the tests of {}", of.name))?;
    let tests = said.lines().filter_map(|l| l.strip_suffix(": test"));
    Ok(tests.filter(|n| n.starts_with("lab::") || n.contains("::lab::")).map(str::to_owned).collect())
}

/// Runs tests out of a queue in a machine, which is there from the first one on, and gives the number of those that passed.
/// A test that fails leaves the machine in no known state: the others get another one. So does a panic of the lab's kernel
/// in KVM: for a test's first one the test is begun once more, and it is counted in `panics`.
fn run_queue<'a>(
    request: &Request,
    nested: Nested,
    queue: &Mutex<impl Iterator<Item = &'a Test<'a>>>,
    all: &[Test<'_>],
    built: &[Built],
    panics: &AtomicUsize,
) -> Result<usize> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let Some(first) = next() else { return Ok(0) };
    // All that the group's tests need: whichever comes next.
    let group: Vec<&Test<'_>> = all.iter().filter(|test| test.nested() == nested).collect();
    let files = files(&group)?;
    let mut items = items(&group, built);
    items.extend(files.iter().map(|(_, path)| Item::at_own_path(path)));
    let variables: Vec<String> = files.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
    let mut machine = enter(request, nested, &items)?;
    let mut passed = 0;
    for test in std::iter::once(first).chain(std::iter::from_fn(next)) {
        let mut panicked = false;
        loop {
            let begun = Instant::now();
            let mut output = Vec::new();
            let why = match run_one(request, &variables, &mut machine, test, &mut output) {
                Ok(0) => None,
                Ok(status) => Some(format!("it ended with {status}")),
                Err(e) => Some(format!("{e:#}")),
            };
            let seconds = begun.elapsed().as_secs_f64();
            let told = |word: &str| format!("{word:>12} [{seconds:>8.3}s] {} {}", test.of.name, test.name);
            let Some(why) = why else {
                passed += 1;
                println!("{}", told("PASS"));
                break;
            };
            children::check()?;
            let looked = (begun.elapsed() >= TEST_LIMIT).then(|| machine.looked_at());
            let said = machine.end();
            let once_more = said.panic() == Some(Panic::AtAGuest) && !panicked && looked.is_none();
            if once_more {
                panicked = true;
                panics.fetch_add(1, Ordering::Relaxed);
                println!("{}\n    {PANICKED}; once more on a fresh machine\n{}", told("PANIC"), said.shown());
            } else {
                let output = String::from_utf8_lossy(&output);
                let looked = looked.map(|looked| format!("    what it did then:\n{looked}\n")).unwrap_or_default();
                println!("{}\n{output}\n    {why}\n{looked}{}", told("FAIL"), said.shown());
            }
            machine = enter(request, nested, &items)?;
            if !once_more {
                break;
            }
        }
    }
    Ok(passed)
}

fn run_one(
    request: &Request,
    variables: &[String],
    machine: &mut Machine,
    test: &Test<'_>,
    output: &mut Vec<u8>,
) -> Result<i32> {
    let program = test.of.program.to_str().context("a path that is no text")?;
    let folder = test.of.folder.to_str().context("a path that is no text")?;
    let words = [program, "--exact", &test.name];
    let own = [format!("CARGO_MANIFEST_DIR={folder}"), "RUST_BACKTRACE=1".to_owned()];
    let environment = request.environment.iter().chain(variables).chain(&own);
    let command = lab::Command {
        folder: folder.as_bytes(),
        words: words.map(str::as_bytes).to_vec(),
        environment: environment.map(|v| v.as_bytes()).collect(),
    };
    machine.session.run_until(Some(Instant::now() + TEST_LIMIT), &command, io::empty(), output)
}

/// The files that variables name for tests over Firecracker or with guests, where there is such a test.
fn files(tests: &[&Test<'_>]) -> Result<Vec<(&'static str, PathBuf)>> {
    let theirs = THEIRS.iter().filter(|_| tests.iter().any(|test| test.is_over_firecracker()));
    let wanted = theirs.chain(GUESTS.iter().filter(|_| tests.iter().any(|test| test.boots_guests())));
    wanted
        .filter_map(|&name| {
            let path = PathBuf::from(std::env::var_os(name)?);
            Some(
                fs::canonicalize(&path)
                    .map(|path| (name, path))
                    .with_context(|| format!("{name} names {}, which is not there", path.display())),
            )
        })
        .collect()
}

/// The tests' programs and folders, and the workspace's other programs, each under its own path.
fn items(tests: &[&Test<'_>], built: &[Built]) -> Vec<Item> {
    let programs = built.iter().filter(|b| !b.is_test).map(|b| &b.program);
    let own = tests.iter().flat_map(|t| [&t.of.program, &t.of.folder]);
    let paths: BTreeSet<&PathBuf> = programs.chain(own).collect();
    paths.into_iter().map(|path| Item::at_own_path(path)).collect()
}
