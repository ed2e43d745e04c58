//! `banger vm run --init -- true`, systemd being the guest's first process, that goes on from a template, against a boot of the same
//! VM: until the command's first output.
//!
//! BANGER_TEST_ROOT_WITH names an image that has systemd.

use crate::run::{COLD, EACH, MEMORY, Taken, banger, made_ahead, with_daemon};
use crate::stats::{Times, compare, head, ms};
use anyhow::{Result, ensure};
use std::time::Duration;

/// The goal, in milliseconds.
const FIRST: u128 = 300;

/// Measures it.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    with_daemon("going on from a template with systemd", "ROOT_WITH", |_| {
        let built = banger(&["template", "build", "--init", "--memory", MEMORY, "--quiet"]).output()?;
        ensure!(built.status.success(), "banger template build: {}", String::from_utf8_lossy(&built.stderr));
        let (mut warm, mut cold) = (Vec::new(), Vec::new());
        // The first of each finds cold caches.
        for round in 0..=rounds {
            for _ in 0..EACH {
                made_ahead();
                warm.push(one(&[])?);
            }
            made_ahead();
            cold.push(one(COLD)?);
            if round == 0 {
                (warm, cold) = (Vec::new(), Vec::new());
            }
        }
        let times = |taken: &[Taken], of: &dyn Fn(&Taken) -> Duration| Times::of(taken.iter().map(of).collect());
        let first = |taken: &[Taken]| times(taken, &|one| one.at("first_output_us"));
        head("A new VM's first output, systemd in it");
        compare(
            "from a template",
            &first(&warm),
            &first(&cold),
            "`banger vm run --init --cold`, as soon as systemd answers",
        );
        println!("\n| stage | from a template, ms | a boot, ms |\n| --- | --- | --- |");
        for name in ["plan", "wire", "disk", "launch", "boot", "run", "down"] {
            let of = |taken: &[Taken]| ms(&times(taken, &|one| one.stage(name).0));
            println!("| {name} | {} | {} |", of(&warm), of(&cold));
        }
        println!("\n{}", warm.last().map_or("", |one| one.note("boot")));
        let took = first(&warm).at(0.5).as_millis();
        let met = if took <= FIRST { "met" } else { "not met" };
        println!("\nthe first output from a template with systemd: {took} ms, the goal of {FIRST} ms is {met}");
        Ok(())
    })
}

fn one(more: &[&str]) -> Result<Taken> {
    let taken = Taken::one(&[&["--init"], more].concat())?;
    ensure!(more == COLD || taken.note("boot").starts_with("no boot"), "it booted: {}", taken.note("disk"));
    Ok(taken)
}
