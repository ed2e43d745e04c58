//! docs/ruleset.md shows what an administrator sees, and it is so.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, output};
use world::{nat, tap, uplink};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ruleset.md");
const FENCE: &str = "\n```\n";

/// A listing with what differs from host to host as the page has it: counters, the bridge's MAC, and what this kernel
/// and this nft know of a table's flags.
fn normal(listing: &str, mac: &str) -> String {
    let mut text = String::new();
    for line in listing.lines().map(|line| line.replace('\t', "    ")) {
        let line = line.replace(mac, "02:62:61:d4:97:d9");
        if line == "    flags owner" || line == "    flags owner,persist" {
            continue;
        }
        let mut words: Vec<&str> = line.split(' ').collect();
        for at in 0..words.len() {
            if ["packets", "bytes"].contains(&words[at]) {
                words[at + 1] = "0";
            }
        }
        let line = words.join(" ");
        text.push_str(line.strip_suffix(" # progname bangerd-root").unwrap_or(&line));
        text.push('\n');
    }
    text
}

isolated! { fn the_page_shows_the_rules_that_are_written() {
    uplink();
    let helper = Helper::start();
    for (name, address) in [("tap-fc-1", "172.16.0.2"), ("tap-fc-2", "172.16.0.3")] {
        helper.ok("priv.create_tap", &tap(name));
        helper.ok("priv.ensure_nat", &nat(address, name, true));
    }
    let mac = world::link("br-fc").unwrap()["address"].as_str().unwrap().to_owned();
    let listing = output("nft", &["list", "ruleset"]);
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(FENCE).expect("a block");
    let (shown, behind) = rest.split_once("```\n").expect("its end");
    let (is, said) = (normal(&listing, &mac), normal(shown, &mac));
    // Before a table's first set nft leaves a line free, or does not, by the table's flags.
    let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (is_so, is_shown) = (lines(&is), lines(&said));
    if is_so == is_shown {
        return;
    }
    if std::env::var_os("BANGER_UPDATE").is_some() {
        let is = is.replace(" banger {\n", " banger { # progname bangerd-root\n    flags owner,persist\n");
        std::fs::write(PAGE, format!("{before}{FENCE}{is}```\n{behind}")).unwrap();
        return;
    }
    let differs = is_so.iter().zip(&is_shown).find(|(is, shown)| is != shown);
    panic!("docs/ruleset.md shows {} lines, there are {}; the first that differs: {differs:#?}. BANGER_UPDATE=1 writes it anew", is_shown.len(), is_so.len());
} }
