//! When others reload: tables that nobody else can change, and what comes back where others can.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/watched.rs"]
mod watched;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, eventually, log_text, output};
use std::time::{Duration, Instant};
use watched::{ANYBODYS, flags, guests, nft, nft_refused, ours, told, whole_again, world};
use way_out::{gets_out, off, web};
use world::{named, ruleset, set, tap};

/// As nft 1.0.6 prints it, which does not know `persist`, and as later ones do.
fn are_owned() -> bool {
    flags().iter().all(|flags| {
        ["# progname bangerd-root flags owner", "# progname bangerd-root flags owner,persist"].contains(&flags.as_str())
    })
}

fn has_persist() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the release");
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

isolated! { fn nobody_else_changes_tables_that_are_the_helper_s() {
    let (helper, guest) = world("");
    if !has_persist() {
        assert_eq!(flags(), [" ", " "], "without persist they would be gone with the helper");
        return;
    }
    assert!(are_owned(), "{:?}", flags());
    let before = ours();
    let mut open = guest.connect(&web()).unwrap();
    for _ in 0..20 {
        nft("flush ruleset");
        assert_eq!(ours(), before);
    }
    use std::io::{Read, Write};
    assert!(open.write_all(b"x").is_ok() && open.read(&mut [0; 64]).is_ok_and(|length| length > 0), "a connection goes on");
    for what in [
        "delete table inet banger",
        "flush table bridge banger",
        "flush chain inet banger forward",
        "flush set inet banger guests",
        "add element inet banger guests { br-fc . 172.16.0.9 }",
        "add rule inet banger forward accept",
        "add chain bridge banger more",
        "add table inet banger { flags dormant; }",
    ] {
        let said = nft_refused(what);
        assert!(said.contains("not permitted") || said.contains("not supported"), "{what}: {said}");
    }
    assert_eq!((ours(), told("put back")), (before, 0));
    // All that the helper itself does goes on.
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    helper.ok("priv.ensure_nat", &world::nat("172.16.0.3", "tap-fc-2", true));
    off(&helper);
    assert_eq!((guests(), guest.tcp(&web(), "x")), (vec!["br-fc . 172.16.0.3".to_owned()], None));
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.delete_tap", &named(name));
    }
    assert!(ruleset().is_empty());
} }

isolated! { fn tables_outlive_the_helper_and_the_next_one_takes_them_over() {
    let (helper, guest) = world("");
    let before = ours();
    if !has_persist() {
        return;
    }
    helper.kill();
    gets_out(&guest);
    assert!(!flags()[0].contains("owner"), "{:?}", flags());
    let helper = Helper::start();
    eventually("the next one has them", are_owned);
    gets_out(&guest);
    assert_eq!((ours(), told("put back")), (before.clone(), 0));
    // Stopped: an administrator takes them away, or some of it, or makes the table an ordinary one.
    assert!(helper.stop().success());
    nft("flush chain inet banger leaving");
    let helper = Helper::start();
    eventually("owned", are_owned);
    whole_again("a chain", &before, &guest);
    assert!(helper.stop().success());
    nft("delete table inet banger");
    nft("delete table bridge banger");
    assert!(ruleset().is_empty());
    let helper = Helper::start();
    whole_again("both tables", &before, &guest);
    assert!(are_owned());
    drop(helper);
    nft("flush ruleset");
    let helper = Start::new().config(ANYBODYS).start();
    whole_again("both tables, anybody's", &before, &guest);
    assert_eq!(flags(), [" ", " "]);
    // From anybody's to the helper's: what was learned stays.
    let learned = set("bridge", "stations");
    assert_eq!(learned.len(), 1);
    drop(helper);
    let helper = Helper::start();
    eventually("owned", are_owned);
    assert_eq!((ours(), set("bridge", "stations")), (before.clone(), learned));
    gets_out(&guest);
    // And back: an orphan is as good as an ordinary one.
    drop(helper);
    let helper = Start::new().config(ANYBODYS).start();
    // It has looked at what there is, and not only at its socket.
    helper.ok("priv.list_resources", &serde_json::json!({}));
    nft("flush set inet banger guests");
    whole_again("an orphan", &before, &guest);
    // All links went while nobody was there: what is left is the next tap's.
    drop(helper);
    for link in ["tap-fc-1", "br-fc"] {
        world::ip(&format!("link del {link}"));
    }
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    assert!(are_owned(), "{:?}", flags());
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.delete_tap", &named(name));
    }
    assert!(ruleset().is_empty());
} }

/// How often the helper's watching thread went to sleep so far.
fn slept(helper: &Helper) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", helper.pid())).expect("the helper's threads");
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let watches = |task: &std::path::PathBuf| read(task.join("comm")) == "watch\n";
    let status = tasks.map(|task| task.expect("a thread").path()).find(watches).map(|task| read(task.join("status")));
    let status = status.expect("somebody watches");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("a count").trim().parse().expect("a number")
}

isolated! { fn a_tap_that_comes_and_goes_wakes_nobody_who_watches() {
    let (helper, _guest) = world("");
    eventually("nothing happens", || {
        let before = slept(&helper);
        std::thread::sleep(Duration::from_millis(100));
        slept(&helper) == before
    });
    let before = slept(&helper);
    for _ in 0..5 {
        helper.ok("priv.create_tap", &tap("tap-fc-2"));
        helper.ok("priv.delete_tap", &named("tap-fc-2"));
    }
    assert_eq!(slept(&helper), before);
    // Of what matters he hears still.
    world::set_sysctl("br-fc", "forwarding", "0");
    eventually("it is switched on again", || world::sysctl("br-fc", "forwarding") == "1");
    assert!(slept(&helper) > before);
} }

isolated! { fn what_others_take_away_comes_back() {
    let (helper, guest) = world(ANYBODYS);
    let iptables = |arguments: &str| output("iptables-nft", &arguments.split(' ').collect::<Vec<_>>());
    let first = || iptables("-S FORWARD").lines().nth(1).is_some_and(|line| line.contains("banger"));
    let before = ours();
    let dead = |table: &str, chain: &str, text: &str| {
        let handle = output("nft", &["-a", "list", "chain", table, "banger", chain]);
        let handle = handle.lines().find(|line| line.contains(text)).unwrap().rsplit(' ').next().unwrap();
        format!("delete rule {table} banger {chain} handle {handle}")
    };
    for what in [
        "flush ruleset".to_owned(),
        "delete table inet banger".to_owned(),
        "delete table bridge banger".to_owned(),
        "flush chain inet banger forward".to_owned(),
        "flush chain bridge banger known".to_owned(),
        "flush set inet banger guests".to_owned(),
        "flush set inet banger together".to_owned(),
        "flush set bridge banger ports".to_owned(),
        "flush set bridge banger ips".to_owned(),
        "flush table inet banger".to_owned(),
        "flush table bridge banger".to_owned(),
        dead("inet", "unmark", "meta mark set"),
        "add rule inet banger forward accept".to_owned(),
        "insert rule bridge banger prerouting accept".to_owned(),
        "add chain inet banger more".to_owned(),
        "add chain inet banger more { type filter hook forward priority -400; policy accept; }".to_owned(),
        "add set bridge banger more { type ipv4_addr; }".to_owned(),
        "chain inet banger input { policy drop; }".to_owned(),
        "add table inet banger { flags dormant; }".to_owned(),
        "add table bridge banger { flags dormant; }".to_owned(),
        "add element inet banger guests { br-fc . 172.16.0.9 }".to_owned(),
        "add element inet banger opened { lo }".to_owned(),
        "add element inet banger bridges { docker0 }".to_owned(),
        "add element inet banger together { br-fc . docker0 }".to_owned(),
        "add element bridge banger ports { tap-fc-9 }".to_owned(),
        "delete table inet banger; delete table bridge banger; add table ip more".to_owned(),
    ] {
        let what = if what.starts_with("delete rule") { dead("inet", "unmark", "meta mark set") } else { what };
        // More than twenty a second would be a fight, and left alone.
        std::thread::sleep(std::time::Duration::from_millis(60));
        nft(&what);
        whole_again(&what, &before, &guest);
    }
    assert!(told("\"by\":\"nft\"") > 0, "{}", log_text());
    iptables("-P FORWARD DROP");
    eventually("our rule", first);
    iptables("-F FORWARD");
    eventually("our rule", first);
    // Another's rule before ours.
    iptables("-I FORWARD -j DROP");
    eventually("ours is first", first);
    gets_out(&guest);
    // A guest that was taken away stays away.
    off(&helper);
    nft("flush ruleset");
    eventually("the tables", || set("bridge", "ports") == ["tap-fc-1"]);
    assert!(guests().is_empty());
    assert_eq!(guest.tcp(&web(), "x"), None);
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
    assert!(ruleset().is_empty());
    // Nothing of ours is there, so nothing comes back: a later change that is answered shows that this one was heard.
    nft("add table ip other");
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    nft("delete table bridge banger");
    eventually("heard", || set("bridge", "ports") == ["tap-fc-1"]);
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
    assert_eq!(ruleset().len(), 1);
} }

isolated! { fn a_table_of_our_name_that_is_another_s_is_left_alone() {
    nft("add table inet banger; add chain inet banger mine; add rule inet banger mine counter");
    let foreign = ruleset();
    let helper = Helper::start();
    let (_, message) = helper.err("priv.create_tap", &tap("tap-fc-1"));
    assert!(message.contains("the nftables table inet banger is somebody else's"), "{message}");
    assert!(world::link("tap-fc-1").is_none());
    assert_eq!(ruleset(), foreign);
    // Neither is what is removed.
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
    assert_eq!(ruleset(), foreign);
    nft("delete table inet banger");
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
    // It came while ours were gone: named once, and ours come back when it goes.
    drop(helper);
    let (helper, guest) = world(ANYBODYS);
    let before = ours();
    std::fs::write("/mnt/theirs", "delete table bridge banger\nadd table bridge banger\n").unwrap();
    output("nft", &["-f", "/mnt/theirs"]);
    eventually("it is named", || told("bridge banger is somebody else's") == 1);
    for _ in 0..5 {
        nft("add table ip noise");
        nft("delete table ip noise");
    }
    let (_, message) = helper.err("priv.create_tap", &tap("tap-fc-2"));
    assert!(message.contains("bridge banger is somebody else's"), "{message}");
    let (_, message) = helper.err("priv.ensure_nat", &world::nat("172.16.0.2", "tap-fc-1", true));
    assert!(message.contains("bridge banger is somebody else's"), "{message}");
    assert_eq!(told("rules could not be put back"), 1, "{}", log_text());
    nft("delete table bridge banger");
    whole_again("theirs went", &before, &guest);
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
} }

isolated! { fn a_peer_that_fights_is_named_once_and_outlived() {
    let (_helper, guest) = world(ANYBODYS);
    let before = ours();
    // Ten times in one program: it is one peer.
    std::fs::write("/mnt/flush", "flush ruleset\n").unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while told("again and again") == 0 {
        assert!(Instant::now() < end, "{}", log_text());
        output("nft", &["-f", "/mnt/flush"]);
    }
    // Left alone: it has it his way.
    for _ in 0..20 {
        output("nft", &["-f", "/mnt/flush"]);
        assert!(ruleset().is_empty(), "not fought for ever");
    }
    let lines = log_text().lines().count();
    common::eventually_within(Duration::from_secs(20), "back when it calms down", || ours() == before);
    gets_out(&guest);
    assert_eq!(told("again and again"), 1, "{}", log_text());
    assert!(log_text().lines().filter(|line| line.contains("put back")).count() <= 3, "{}", log_text());
    assert!(log_text().lines().count() < lines + 5);
} }

mod lab {
    //! On the lab's older kernel, which knows an owner and no `persist`.

    use super::*;

    isolated! { fn without_persist_tables_are_anybodys_and_come_back() {
        let (helper, guest) = world("");
        if has_persist() {
            return;
        }
        assert_eq!(flags(), [" ", " "]);
        let before = ours();
        for what in ["flush ruleset", "delete table bridge banger", "flush chain inet banger leaving", "add element inet banger guests { br-fc . 172.16.0.9 }"] {
            nft(what);
            whole_again(what, &before, &guest);
        }
        helper.kill();
        gets_out(&guest);
        let helper = Helper::start();
        assert_eq!((ours(), flags()), (before, [" ".to_owned(), " ".to_owned()]));
        helper.ok("priv.delete_tap", &named("tap-fc-1"));
    } }
}
