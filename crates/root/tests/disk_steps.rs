//! Every step of every snapshot operation fails once, and is where the helper is killed once; and a helper that is
//! killed at any moment. In the lab: `lab/test`.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "disk/world.rs"]
mod world;

/// The operations and their steps, in their order.
const STEPS: [(&str, &[&str]); 3] = [
    ("create_dm_snapshot", &["base_loop", "cow_loop", "device", "table", "resume", "node"]),
    ("remove_dm_snapshot", &["snapshot", "node"]),
    ("cleanup_dm_snapshot", &["snapshot", "node", "cow_loop", "base_loop"]),
];

#[test]
fn no_step_is_forgotten() {
    let steps = |source: &str| -> Vec<String> {
        let acts = source.split(".act(\"").skip(1).filter_map(|rest| rest.split('"').next());
        acts.map(str::to_owned).collect()
    };
    let sorted = |mut steps: Vec<String>| {
        steps.sort();
        steps
    };
    let named = |nth: usize| sorted(STEPS[nth].1.iter().map(|&step| step.to_owned()).collect());
    assert_eq!(sorted(steps(include_str!("../src/disk/create.rs"))), named(0));
    assert_eq!(sorted(steps(include_str!("../src/disk/cleanup.rs"))), named(2));
}

mod lab {
    use super::STEPS;
    use super::common::{Helper, OWNER, Start, connect, output, reply};
    use super::world::{
        BASE, CLEANUP, CREATE, OnDisk, REMOVE, base, block, devices, loops, make, new, node, nothing_is_left,
        read_blocks, sparse, store, target, write_block,
    };
    use crate::isolated;
    use serde_json::{Value, json};
    use std::fs;
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    const MIB: u64 = 1 << 20;

    fn request(operation: &str, made: &Value) -> (&'static str, Value) {
        match operation {
            "create_dm_snapshot" => (CREATE, new("s")),
            "remove_dm_snapshot" => (REMOVE, target("s")),
            _ => (CLEANUP, made.clone()),
        }
    }

    /// Starts a helper that fails there, over a snapshot of before where the operation takes one away.
    fn ground(operation: &str, step: &str, kind: &str) -> (Helper, Value) {
        let mut made = json!({});
        if operation != "create_dm_snapshot" {
            let helper = Helper::start();
            made = make(&helper, "s", MIB);
            helper.kill();
        } else {
            sparse(&store("s"), MIB);
        }
        (Start::new().config(&format!("fault = \"{operation}.{step}:{kind}\"\n")).start(), made)
    }

    isolated! {
        fn a_step_that_fails_leaves_nothing_new() {
            let _state = OnDisk::state("steps-fail");
            base(16);
            for (operation, steps) in STEPS {
                for step in steps {
                    let (helper, made) = ground(operation, step, "fail");
                    let (method, params) = request(operation, &made);
                    let (_, message) = helper.err(method, &params);
                    assert!(message.contains(&format!("{operation}.{step}")), "{message}");
                    assert!(!message.contains("could not be undone"), "{message}");
                    if operation == "create_dm_snapshot" {
                        nothing_is_left();
                    }
                    helper.kill();
                    again(operation, step, &made);
                }
            }
        }
    }

    isolated! {
        fn killed_at_a_step_the_same_call_ends_it() {
            let _state = OnDisk::state("steps-kill");
            base(16);
            for (operation, steps) in STEPS {
                for step in steps {
                    let (mut helper, made) = ground(operation, step, "kill");
                    let (method, params) = request(operation, &made);
                    let mut stream = connect(OWNER);
                    stream.write_all(json!({"method": method, "params": params}).to_string().as_bytes()).unwrap();
                    let mut nothing = Vec::new();
                    let _ = stream.read_to_end(&mut nothing);
                    assert!(nothing.is_empty(), "{operation}.{step}");
                    helper.wait();
                    // What is there is told.
                    let next = Helper::start();
                    let told = next.ok("priv.list_resources", &json!({}))["snapshots"].as_array().unwrap().len();
                    assert_eq!(told, devices().len(), "{operation}.{step}");
                    drop(next);
                    again(operation, step, &made);
                }
            }
        }
    }

    /// The same call, and where it made something, another that takes it away: nothing is left.
    fn again(operation: &str, step: &str, made: &Value) {
        let helper = Helper::start();
        let (method, params) = request(operation, made);
        let made = helper.ok(method, &params);
        if operation == "create_dm_snapshot" {
            write_block(&node("s"), 1, &block(step));
            assert_eq!(read_blocks(&node("s"), 1, 1), block(step), "{step}");
            helper.ok(CLEANUP, &made);
        }
        nothing_is_left();
    }

    isolated! {
        fn killed_at_any_moment_of_two_hundred_calls() {
            const CALLS: u32 = 200;
            let _state = OnDisk::state("steps-random");
            let base_bytes = base(16);
            for n in 0..4 {
                sparse(&store(&format!("k{n}")), MIB);
            }
            // Handles of before: what of them is bound to something else by now must stay.
            let mut handles = vec![json!({}); 4];
            let (mut killed, mut seed) = (0, 88_172_645_463_325_252_u64);
            let mut helper = Some(Helper::start());
            for call in 0..CALLS {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let nth = (call % 4) as usize;
                let id = format!("k{nth}");
                let (method, params) = if (call / 4) % 2 == 0 { (CREATE, new(&id)) } else { (CLEANUP, handles[nth].clone()) };
                let mut stream = connect(OWNER);
                stream.write_all(json!({"method": method, "params": params}).to_string().as_bytes()).unwrap();
                if seed % 3 == 0 {
                    // From before it is read until about when it is answered.
                    let until = Instant::now() + Duration::from_micros(seed / 3 % 80_000);
                    while Instant::now() < until {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    helper.take().expect("a helper").kill();
                    killed += 1;
                    helper = Some(Helper::start());
                    // Asked again, as a client does that had no answer.
                    let done = helper.as_ref().expect("a helper").ok(method, &params);
                    handles[nth] = if method == CREATE { done } else { json!({}) };
                    continue;
                }
                let answer = reply(stream);
                assert_eq!(answer["ok"], true, "{method} {params}: {answer}");
                handles[nth] = if method == CREATE { answer["result"].clone() } else { json!({}) };
            }
            assert!(killed > CALLS / 5, "{killed}");
            let helper = helper.expect("a helper");
            for n in 0..4 {
                helper.ok(REMOVE, &target(&format!("k{n}")));
            }
            nothing_is_left();
            assert!(fs::read(BASE).unwrap() == base_bytes, "the base was written");
            assert!(loops().is_empty() && !output("dmsetup", &["ls"]).contains("fc-rootfs-"));
        }
    }
}
