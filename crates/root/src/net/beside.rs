//! Other firewalls on the host: what of theirs would drop a guest's packets, and the one rule that accepts our mark
//! in a table of theirs.
//!
//! An accept in our table undoes no drop in another's. Our forward chain marks what it has let through, so one rule
//! is enough for all guests and both directions, and it opens nothing else. It is found again by its expressions and
//! its comment, stands first in its chain, and goes with the last guest.

mod foreign;
mod legacy;
mod program;

use super::firewall::Firewall;
use super::message::{CREATE, Requests, attr};
use super::netlink::Refused;
use super::ruleset::{header, nft};
use super::{Net, expr};
use crate::host::Host;
use crate::log::{Level, Value};
use crate::settings::Mark;
use expr::{Expr, Meta, Verdict};
use foreign::Chain;
pub(super) use foreign::{Rule, rule};
use legacy::Legacy;
pub(super) use legacy::tables as legacy_tables;
use std::sync::{Mutex, PoisonError};
use wire::reply::{BlockedBy, RuleElsewhere};

const IP: u8 = 2;
const INET: u8 = 1;

/// What a rule of ours in another's table says beside it.
const COMMENT: &str = "banger";

/// `meta mark & 0xff000000 == 0x62000000 counter accept`
fn accept(mark: Mark) -> [Expr; 5] {
    [
        Expr::Load(Meta::Mark, 1),
        Expr::WordBits(mark.mask, 0),
        Expr::IsWord(mark.value),
        Expr::Count,
        Expr::Then(Verdict::Accept),
    ]
}

/// What is known of others' tables.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    state: Mutex<State>,
    /// Of `iptables-legacy`'s, which tell nobody of changes.
    legacy: Mutex<Legacy>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// Not looked at since somebody changed them, or since the helper started.
    #[default]
    Unknown,
    /// Guests are there, and all that can be done for them is done.
    Done,
    /// Nothing of ours is there.
    Clean,
}

impl Beside {
    /// Somebody else changed rules.
    pub(crate) fn forget(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Unknown;
    }

    fn set_legacy(&self, now: Legacy) {
        *self.legacy.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Guests are there: where another's table needs our rule it is added. What can't be done is in the log: the guest's
/// way is open as far as we go. Says whether rules changed.
pub(crate) fn open(host: &Host) -> bool {
    let mut state = host.net.beside.state.lock().unwrap_or_else(PoisonError::into_inner);
    host.net.beside.set_legacy(legacy::open(host));
    if *state == State::Done {
        return false;
    }
    match host.net.firewall(|fw| settle(fw, true)) {
        Ok((scene, changed)) => {
            // Without the watcher nobody says when they change: they are looked at each time.
            *state = if host.net.watch.runs() { State::Done } else { State::Unknown };
            tell(host, &scene, changed);
            changed
        }
        Err(error) => {
            failed(host, "other firewalls could not be looked at: a guest may not get out", &error);
            false
        }
    }
}

/// The last guest is gone: our rules in others' tables go.
pub(crate) fn close(host: &Host) {
    let mut state = host.net.beside.state.lock().unwrap_or_else(PoisonError::into_inner);
    if *state == State::Clean {
        return;
    }
    legacy::close(host);
    host.net.beside.set_legacy(Legacy::Clean);
    match host.net.firewall(|fw| settle(fw, false)) {
        Ok((scene, changed)) => {
            *state = State::Clean;
            if changed {
                say(host, "rule in another's table removed", scene.ours.iter().map(|found| found.place.to_string()));
            }
        }
        Err(error) => failed(host, "a rule of banger's may be left in another's table", &error),
    }
}

fn failed(host: &Host, message: &str, error: &Refused) {
    host.log.own(Level::Warn, message, &[("cause", Value::Text(&error.to_string(), 512))]);
}

fn say(host: &Host, message: &str, places: impl Iterator<Item = String>) {
    let places: Vec<_> = places.collect();
    host.log.own(Level::Info, message, &[("chains", Value::List(&places, 512))]);
}

fn tell(host: &Host, scene: &Scene, changed: bool) {
    if changed {
        say(host, "rule added in another's table", scene.wanted.iter().map(ToString::to_string));
    }
    for blocked in &scene.blocked {
        let text = format!("{} {} {}: {}", blocked.family, blocked.table, blocked.chain, blocked.why);
        host.log.own(Level::Warn, "another firewall drops guests' packets", &[("rule", Value::Text(&text, 512))]);
    }
}

/// Fills in what `priv.list_resources` says of others' tables.
pub(crate) fn list(net: &Net) -> Result<(Vec<RuleElsewhere>, Vec<BlockedBy>), Refused> {
    let mut scene = net.firewall(|fw| fw.scene())?;
    let mut elsewhere = Vec::new();
    match *net.beside.legacy.lock().unwrap_or_else(PoisonError::into_inner) {
        Legacy::Clean => {}
        Legacy::Stands(chain) => elsewhere.push(legacy::elsewhere(chain)),
        Legacy::Failed => scene.blocked.extend(legacy::unknown(net.mark)),
    }
    let ours = scene.ours.iter().map(|found| RuleElsewhere {
        family: family(found.place.family).to_owned(),
        table: found.place.table.clone(),
        chain: found.place.chain.clone(),
        handle: found.handle,
        why: "it accepts banger's mark and says banger".to_owned(),
    });
    elsewhere.extend(ours);
    Ok((elsewhere, scene.blocked))
}

/// A chain by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    family: u8,
    table: String,
    chain: String,
}

impl Place {
    fn of(chain: &Chain) -> Place {
        Place { family: chain.family, table: chain.table.clone(), chain: chain.name.clone() }
    }

    fn is(&self, family: u8, table: &str, chain: &str) -> bool {
        self.family == family && self.table == table && self.chain == chain
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", family(self.family), self.table, self.chain)
    }
}

fn family(number: u8) -> &'static str {
    match number {
        INET => "inet",
        _ => "ip",
    }
}

/// A rule of ours in another's table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    place: Place,
    handle: u64,
    /// First in its chain, and with the mark of now.
    is_right: bool,
}

/// Others' tables at one moment.
#[derive(Debug, Default)]
struct Scene {
    generation: u32,
    /// Where our rule has to stand.
    wanted: Vec<Place>,
    /// Where it does.
    ours: Vec<Found>,
    /// What drops, and is not ours to change.
    blocked: Vec<BlockedBy>,
}

/// Makes it so, in one transaction. Says what there was, and whether that was changed.
fn settle(fw: &mut Firewall, guests: bool) -> Result<(Scene, bool), Refused> {
    let mut tries = 0;
    loop {
        let scene = fw.scene()?;
        let wanted: &[Place] = if guests { &scene.wanted } else { &[] };
        let stands = |place: &Place| {
            scene.ours.iter().filter(|found| found.place == *place).map(|found| found.is_right).eq([true])
        };
        let add: Vec<_> = wanted.iter().filter(|place| !stands(place)).collect();
        let remove: Vec<_> =
            scene.ours.iter().filter(|found| !wanted.contains(&found.place) || add.contains(&&found.place)).collect();
        if add.is_empty() && remove.is_empty() {
            return Ok((scene, false));
        }
        let mark = fw.mark;
        let done = fw.commit(scene.generation, |batch| {
            remove.iter().for_each(|found| write_removal(batch, found));
            add.iter().for_each(|place| write_rule(batch, place, mark));
        });
        match done {
            Ok(()) => return Ok((scene, true)),
            // Another changed rules between our look and our change.
            Err(refused) if refused.is(libc::ERESTART) && tries < 20 => tries += 1,
            Err(refused) => return Err(refused),
        }
    }
}

const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;

fn write_rule(batch: &mut Requests, place: &Place, mark: Mark) {
    // Without NLM_F_APPEND a rule goes to the head of its chain.
    let mut attrs = batch.push(nft(NEWRULE), CREATE, &header(place.family));
    attrs.text(1, &place.table).text(2, &place.chain).nest(4, |list| {
        accept(mark).iter().for_each(|expr| expr.write(list));
    });
    let mut comment = vec![0, COMMENT.len() as u8 + 1];
    comment.extend(COMMENT.as_bytes());
    comment.push(0);
    attrs.bytes(7, &comment);
}

fn write_removal(batch: &mut Requests, found: &Found) {
    let Found { place, handle, .. } = found;
    batch
        .push(nft(DELRULE), 0, &header(place.family))
        .text(1, &place.table)
        .text(2, &place.chain)
        .bytes(3, &handle.to_be_bytes());
}

/// Whether it is our rule, as we wrote it or as `iptables-restore` wrote it again; with whatever mark the settings had.
fn is_ours(rule: &Rule) -> bool {
    // struct xt_comment_info: the text, 256 bytes.
    let noted = data_of(rule, "match").and_then(|data| attr(data, 3)).is_some_and(|info| info.starts_with(b"banger\0"));
    let beside = ["counter", "match", "bitwise"];
    let names = rule.exprs.iter().map(|(name, _)| name.as_str()).filter(|name| !beside.contains(name));
    names.eq(["meta", "cmp", "immediate"])
        && data_of(rule, "meta").and_then(|data| attr(data, 2)) == Some(&[0, 0, 0, 3])
        && data_of(rule, "cmp").and_then(|data| attr(data, 2)) == Some(&[0; 4])
        && rule.verdict() == Some(foreign::ACCEPTS)
        && (rule.comment == b"banger\0" || noted)
}

fn data_of<'a>(rule: &'a Rule, name: &str) -> Option<&'a [u8]> {
    rule.exprs.iter().find(|(found, _)| found == name).map(|(_, data)| data.as_slice())
}

/// Whether a rule of ours accepts this mark.
fn accepts(rule: &Rule, mark: Mark) -> bool {
    let value = |name, kind| data_of(rule, name).and_then(|data| attr(data, kind)).and_then(|data| attr(data, 1));
    // A mask of all bits is none for iptables.
    value("bitwise", 4).map_or(mark.mask == u32::MAX, |mask| *mask == mark.mask.to_ne_bytes())
        && value("cmp", 3) == Some(&mark.value.to_ne_bytes())
}

impl Firewall {
    /// Looks at others' tables.
    fn scene(&mut self) -> Result<Scene, Refused> {
        let (generation, mark) = (self.generation()?, self.mark);
        let mut scene = Scene { generation, ..Scene::default() };
        let chains = foreign::chains(self)?;
        let owned = foreign::owned(self, &chains)?;
        let mut forward_jumps = false;
        for chain in &chains {
            let place = Place::of(chain);
            let is_forward = place.is(IP, "filter", "FORWARD");
            if !(chain.is_forward() || place.is(IP, "filter", "DOCKER-USER")) {
                continue;
            }
            let rules = foreign::rules(self, chain)?;
            let ours = rules.iter().enumerate().filter(|(_, rule)| is_ours(rule));
            scene.ours.extend(ours.map(|(nth, rule)| Found {
                place: place.clone(),
                handle: rule.handle,
                is_right: nth == 0 && accepts(rule, mark),
            }));
            if is_forward {
                forward_jumps = rules.iter().any(|rule| rule.jumps_to("DOCKER-USER"));
                if !forward_jumps && (chain.drops || rules.iter().any(Rule::drops)) {
                    scene.wanted.push(place);
                }
            } else if place.is(INET, "firewalld", "filter_FORWARD") {
                if owned.contains(&(INET, chain.table.clone())) {
                    let why = "the table belongs to firewalld alone (NftablesTableOwner): give the bridge a zone and a policy, docs/helper.md has the commands";
                    scene.blocked.push(blocked(chain, 0, why));
                } else {
                    scene.wanted.push(place);
                }
            } else if chain.is_forward() && !rules.iter().any(is_ours) {
                scene.blocked.extend(blocks(chain, &rules));
            }
        }
        if forward_jumps {
            scene.wanted.push(Place { family: IP, table: "filter".into(), chain: "DOCKER-USER".into() });
        }
        Ok(scene)
    }
}

/// What of somebody's own chain drops whatever it is: its policy, or a rule without a condition.
fn blocks(chain: &Chain, rules: &[Rule]) -> Option<BlockedBy> {
    if chain.drops {
        return Some(blocked(chain, 0, "policy drop; accept packets with our mark there"));
    }
    let rule = rules.iter().find(|rule| rule.drops() && rule.is_unconditional())?;
    Some(blocked(chain, rule.handle, "a rule drops all; accept packets with our mark before it"))
}

fn blocked(chain: &Chain, handle: u64, why: &str) -> BlockedBy {
    BlockedBy {
        family: family(chain.family).to_owned(),
        table: chain.table.clone(),
        chain: chain.name.clone(),
        handle,
        why: why.to_owned(),
    }
}
