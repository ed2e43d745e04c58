//! `lab/test`: the tests that need the lab, out of all test programs of the workspace, in one restored machine.
//!
//! A test asks for the lab by its name: it stands in a module `lab`. One that stands in a module `lab::nested` gets a
//! machine that has `/dev/kvm`. Each runs as a process of its own, in its package's folder, under the paths that it was
//! built with: programs of the workspace are where `env!("CARGO_BIN_EXE_…")` says.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::baggage::Item;
use super::machine::{Machine, Nested};
use super::{Request, children, enter};
use crate::programs;

/// How long one test may take, in seconds.
const TEST_LIMIT: &str = "300";
/// For all of them together.
const LIMIT: Duration = Duration::from_secs(45 * 60);

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
    children::end_after(request.limit.max(LIMIT));
    let (mut passed, mut failed) = (0, 0);
    for nested in [Nested::No, Nested::Yes] {
        let group: Vec<&Test<'_>> = tests.iter().filter(|t| t.nested() == nested).collect();
        if !group.is_empty() {
            let good = run_group(&request, nested, &group, &built)?;
            passed += good;
            failed += group.len() - good;
        }
    }
    println!("{passed} passed, {failed} failed");
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

/// Runs tests in one machine, and gives the number of those that passed. A test that ends the machine gets the others
/// another one.
fn run_group(request: &Request, nested: Nested, tests: &[&Test<'_>], built: &[Built]) -> Result<usize> {
    let items = items(tests, built);
    let mut machine = enter(request, nested, &items)?;
    let mut passed = 0;
    for test in tests {
        let begun = Instant::now();
        let mut output = Vec::new();
        let (word, why) = match run_one(request, &mut machine, test, &mut output) {
            Ok(0) => ("PASS", None),
            Ok(124) => ("FAIL", Some(format!("not done after {TEST_LIMIT} s"))),
            Ok(status) => ("FAIL", Some(format!("it ended with {status}"))),
            Err(e) => {
                children::check()?;
                let why = format!("{e:#}\n{}", machine.console());
                machine = enter(request, nested, &items)?;
                ("FAIL", Some(why))
            }
        };
        println!("{word:>12} [{:>8.3}s] {} {}", begun.elapsed().as_secs_f64(), test.of.name, test.name);
        match why {
            None => passed += 1,
            Some(why) => println!("{}\n    {why}", String::from_utf8_lossy(&output)),
        }
    }
    Ok(passed)
}

fn run_one(request: &Request, machine: &mut Machine, test: &Test<'_>, output: &mut Vec<u8>) -> Result<i32> {
    let program = test.of.program.to_str().context("a path that is no text")?;
    let folder = test.of.folder.to_str().context("a path that is no text")?;
    let words = ["timeout", "-k", "5", TEST_LIMIT, program, "--exact", &test.name];
    let own = [format!("CARGO_MANIFEST_DIR={folder}"), "RUST_BACKTRACE=1".to_owned()];
    let environment = request.environment.iter().chain(&own);
    let command = lab::Command {
        folder: folder.as_bytes(),
        words: words.map(str::as_bytes).to_vec(),
        environment: environment.map(|v| v.as_bytes()).collect(),
    };
    machine.session.run(&command, io::empty(), output)
}

/// The tests' programs and folders, and the workspace's other programs, each under its own path.
fn items(tests: &[&Test<'_>], built: &[Built]) -> Vec<Item> {
    let programs = built.iter().filter(|b| !b.is_test).map(|b| &b.program);
    let own = tests.iter().flat_map(|t| [&t.of.program, &t.of.folder]);
    let paths: BTreeSet<&PathBuf> = programs.chain(own).collect();
    paths.into_iter().map(|path| Item::at_own_path(path)).collect()
}
