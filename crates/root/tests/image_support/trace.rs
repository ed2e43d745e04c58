//! A worker that waits for its request, and strace that looks at it or at its helper.

use super::*;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// The worker that waits, of a helper with `waiting_worker`: it comes behind the first request.
pub(crate) fn waiting_worker(helper: &Helper) -> String {
    assert_eq!(read(helper, IMAGE, "/etc/hostname"), b"guest\n");
    let mut worker = None;
    eventually("a worker waits", || {
        worker = now_waiting(helper);
        worker.is_some()
    });
    worker.expect("one that waits")
}

/// The helper's worker, while nobody asks for anything.
pub(crate) fn now_waiting(helper: &Helper) -> Option<String> {
    let worker = children(helper.pid()).pop()?;
    let name = fs::read_to_string(format!("/proc/{worker}/comm"));
    name.is_ok_and(|name| name == "banger-image\n").then_some(worker)
}

/// strace, once it looks at all threads of a process. It ends with that process.
pub(crate) fn trace(target: &str, how: &[&str], threads: Option<&str>) -> Child {
    let mut strace = tracer(target, how, threads);
    eventually("it is traced", || {
        // strace lists threads once: one that came in that moment is missed, and looked at by the next strace.
        let began = Instant::now();
        while !is_traced(target) {
            if began.elapsed() > Duration::from_secs(1) {
                let _ = Command::new("kill").arg(strace.id().to_string()).status();
                let _ = strace.wait();
                strace = tracer(target, how, threads);
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    });
    strace
}

fn tracer(target: &str, how: &[&str], threads: Option<&str>) -> Child {
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-p", target]).args(how).args(threads);
    strace.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace")
}

/// Whether all threads of a process are traced; or have been, where the call that it waits in is the first one.
fn is_traced(target: &str) -> bool {
    fs::read_dir(format!("/proc/{target}/task")).into_iter().flatten().flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n") || status.contains("State:\tZ")
    })
}

/// The process ids of a process's children.
fn children(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}
