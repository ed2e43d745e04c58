//! Our tables in the kernel: what is in their sets, and changes to them, each one transaction.
//!
//! A change is asked for as what is to be there and what is not. The kernel is asked first what there is: a batch that
//! fails costs 13 ms, and what was really changed is what an undo has to take back.

use super::known::Known;
use super::message::{CREATE, DUMP, EXCL, Requests, attr, attrs};
use super::netlink::{Conn, Refused};
use super::ruleset::{self, header, nft, write_key};
use super::sets::{Element, Key, Set, TABLE, Table};
use super::whose::{self, Whose};
use crate::settings::Mark;
use std::fmt::Display;
use sys::netlink::Family;

const DELTABLE: u16 = 2;
pub(crate) const NEWSETELEM: u16 = 12;
pub(super) const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

/// Begin and end of a transaction.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// What is to be, and what is not to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) tables: Tables,
    pub(crate) present: Vec<Element>,
    pub(crate) absent: Vec<Element>,
}

/// What is to become of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tables {
    /// Elements change where they are; nothing is made.
    #[default]
    AsTheyAre,
    /// Made where one is missing, from nothing: what was left of the other goes.
    Made,
    /// Gone.
    Gone,
    /// Gone, where no tap stands on them but those that are to be absent; else as they are.
    GoneWithLast,
}

/// What a change changed, and how it is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// These elements; the change back.
    Elements(Change),
    /// The tables were made, with these elements.
    Made(Vec<Element>),
    /// The tables went, with these elements.
    Gone(Vec<Element>),
    /// Nothing.
    Nothing,
}

/// The conversation with nftables: one socket, because a table can belong to the socket that made it.
#[derive(Debug)]
pub(crate) struct Firewall {
    pub(super) conn: Conn,
    /// Whether our tables are to be this socket's alone.
    pub(crate) owned: bool,
    /// Whether this kernel has tables that belong to a socket and outlive it; `None` until it was asked.
    pub(crate) persists: Option<bool>,
    /// What is known of the tables.
    pub(super) known: Option<Known>,
    /// What our rules mark packets with.
    pub(crate) mark: Mark,
}

/// What was asked of the tables at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(super) generation: u32,
    pub(super) tables: [Whose; 2],
    pub(super) asked: Vec<Element>,
    /// Whether each element is there, in the order of the question.
    pub(crate) there: Vec<bool>,
    /// What is not there was not asked for: a change by it fails with EEXIST where it is.
    pub(super) is_guess: bool,
}

impl Seen {
    /// Whether both tables are there and ours.
    pub(crate) fn stands(&self) -> bool {
        self.tables() == [true, true]
    }

    /// Whether not all of it was asked for.
    pub(crate) fn is_guess(&self) -> bool {
        self.is_guess
    }

    /// Which of our tables were there.
    pub(crate) fn tables(&self) -> [bool; 2] {
        self.tables.map(Whose::is_ours)
    }

    /// Whose they were.
    pub(crate) fn whose(&self) -> [Whose; 2] {
        self.tables
    }

    /// The same of these elements, where all of them were asked for.
    fn narrow(&self, asked: &[Element]) -> Option<Seen> {
        let at = |element| self.asked.iter().position(|other| other == element).map(|nth| self.there[nth]);
        let there = asked.iter().map(at).collect::<Option<Vec<bool>>>()?;
        Some(Seen { asked: asked.to_vec(), there, ..*self })
    }
}

impl Firewall {
    /// Opens the socket.
    pub(crate) fn open(owned: bool, mark: Mark) -> Result<Firewall, Refused> {
        Ok(Firewall { conn: Conn::open(Family::Netfilter)?, owned, persists: None, known: None, mark })
    }

    /// The number of the socket.
    pub(crate) fn port(&self) -> Option<u32> {
        self.conn.port()
    }

    /// A list, whole.
    pub(crate) fn dump(&mut self, call: impl Display, ask: &mut Requests) -> Result<Vec<Vec<u8>>, Refused> {
        self.conn.one(call, ask)
    }

    /// All elements of a set; none where its table is missing.
    pub(crate) fn elements(&mut self, set: Set) -> Result<Vec<Element>, Refused> {
        let mut ask = Requests::default();
        ask.push(nft(GETSETELEM), DUMP, &header(set.table().family())).text(1, TABLE).text(2, set.name());
        let bodies = match self.conn.one(format_args!("NFT_MSG_GETSETELEM {}, all", set.name()), &mut ask) {
            Ok(bodies) => bodies,
            Err(refused) if refused.is(libc::ENOENT) => return Ok(Vec::new()),
            Err(refused) => return Err(refused),
        };
        let mut elements = Vec::new();
        for body in &bodies {
            let list = body.get(4..).and_then(|body| attr(body, 3)).unwrap_or_default();
            for (_, element) in attrs(list) {
                if let Some(key) = attr(element, 1).and_then(|key| attr(key, 1)) {
                    elements.push(Element { set, key: Key::of(&[key]) });
                }
            }
        }
        Ok(elements)
    }

    /// Makes it so, in one transaction, and says what that changed.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<Changed, Refused> {
        self.apply_seen(change, None)
    }

    /// The same by what was `seen` a moment ago, where it holds all that the change is about: a question less. The
    /// kernel refuses the change where it is not so any more, and then it is asked again.
    pub(crate) fn apply_seen(&mut self, change: &Change, mut seen: Option<&Seen>) -> Result<Changed, Refused> {
        let mut tries = 0;
        loop {
            match self.once(change, seen.take()) {
                // Another changed rules between our look and our change.
                Err(refused) if refused.is(libc::ERESTART) && tries < 20 => tries += 1,
                other => return other,
            }
        }
    }

    fn once(&mut self, change: &Change, seen: Option<&Seen>) -> Result<Changed, Refused> {
        let asked: Vec<Element> = change.present.iter().chain(&change.absent).copied().collect();
        let seen = match seen.and_then(|seen| seen.narrow(&asked)) {
            Some(seen) => seen,
            None => self.look(&asked)?,
        };
        match change.tables {
            Tables::Gone => self.drop_tables(&seen),
            // Whoever counted the taps did so before: another one may have come since, which stands on the tables. This reads what
            // the look has seen, or the change is refused.
            Tables::GoneWithLast if !self.elements(Set::Ports)?.iter().any(|port| !change.absent.contains(port)) => {
                self.drop_tables(&seen)
            }
            Tables::Made if !seen.stands() => self.make_tables(&seen, &change.present),
            _ => self.change_elements(&seen, change, &asked),
        }
    }

    fn change_elements(&mut self, seen: &Seen, change: &Change, asked: &[Element]) -> Result<Changed, Refused> {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for (nth, element) in asked.iter().enumerate() {
            let wanted = nth < change.present.len();
            let stands = seen.tables()[usize::from(element.set.table() == Table::Bridge)];
            if wanted && !seen.there[nth] && stands && !add.contains(element) {
                add.push(*element);
            } else if !wanted && seen.there[nth] && !remove.contains(element) {
                remove.push(*element);
            }
        }
        let owned = self.owned;
        let orphans = change.tables == Tables::Made && whose::orphans(seen, owned).next().is_some();
        if orphans || !(add.is_empty() && remove.is_empty()) {
            let create = if seen.is_guess { CREATE | EXCL } else { CREATE };
            let generation = self.bound_to(seen);
            let known = self.known.take();
            self.commit(generation, |batch| {
                whose::claim_too(batch, seen, owned);
                remove.iter().for_each(|element| write_element(batch, DELSETELEM, 0, element));
                add.iter().for_each(|element| write_element(batch, NEWSETELEM, create, element));
            })?;
            let known = known.filter(|known| known.generation == seen.generation);
            self.known = known.map(|known| known.changed(&add, &remove));
        }
        match add.is_empty() && remove.is_empty() {
            true => Ok(Changed::Nothing),
            false => Ok(Changed::Elements(Change { tables: Tables::AsTheyAre, present: remove, absent: add })),
        }
    }

    fn make_tables(&mut self, seen: &Seen, present: &[Element]) -> Result<Changed, Refused> {
        self.write_tables(seen, present.iter())?;
        Ok(Changed::Made(present.to_vec()))
    }

    /// Writes both tables anew, with these elements and no others, in one transaction.
    pub(crate) fn write_tables<'a>(
        &mut self,
        seen: &Seen,
        elements: impl Iterator<Item = &'a Element>,
    ) -> Result<(), Refused> {
        let is_anothers = |(whose, _): &(Whose, Table)| *whose == Whose::Anothers;
        if let Some((_, table)) = seen.tables.into_iter().zip(Table::BOTH).find(is_anothers) {
            return Err(whose::anothers(table));
        }
        let flags = self.flags()?;
        let mark = self.mark;
        self.commit(self.bound_to(seen), |batch| {
            write_drop(batch, seen.tables());
            ruleset::write(batch, flags, mark);
            elements.for_each(|element| write_element(batch, NEWSETELEM, CREATE, element));
        })
    }

    fn drop_tables(&mut self, seen: &Seen) -> Result<Changed, Refused> {
        if seen.tables() == [false, false] {
            return Ok(Changed::Nothing);
        }
        let before = self.all()?;
        self.commit(self.bound_to(seen), |batch| write_drop(batch, seen.tables()))?;
        Ok(Changed::Gone(before))
    }

    /// Takes a change back. Tables that were made, and what they hold of bridges, stay where somebody else's tap is in
    /// them by now: it stands on them.
    pub(crate) fn take_back(&mut self, changed: Changed) -> Result<(), Refused> {
        let mut back = match changed {
            Changed::Nothing => return Ok(()),
            Changed::Elements(back) => back,
            Changed::Gone(present) => Change { tables: Tables::Made, present, absent: Vec::new() },
            Changed::Made(mine) => Change { tables: Tables::Gone, present: Vec::new(), absent: mine },
        };
        if self.elements(Set::Ports)?.iter().any(|port| !back.absent.contains(port)) {
            if back.tables == Tables::Gone {
                back.tables = Tables::AsTheyAre;
            }
            let pinned: Vec<_> = back.absent.iter().filter(|pin| pin.set == Set::Addresses).copied().collect();
            back.absent.retain(|element| match element.set {
                Set::Bridges | Set::Together | Set::Macs => false,
                // A guest's, or a bridge's own.
                Set::Ips => pinned.iter().any(|pin| pin.key.get(16..) == Some(&element.key[..])),
                _ => true,
            });
        }
        self.apply(&back).map(|_| ())
    }

    /// The elements of all sets that change.
    fn all(&mut self) -> Result<Vec<Element>, Refused> {
        let mut all = Vec::new();
        for set in Set::ALL.into_iter().filter(|set| set.ranges().is_empty()) {
            all.extend(self.elements(set)?);
        }
        Ok(all)
    }

    /// One transaction, refused by the kernel where the generation is another by now; 0 is any.
    pub(crate) fn commit(&mut self, generation: u32, fill: impl FnOnce(&mut Requests)) -> Result<(), Refused> {
        const NFTABLES: u8 = 10;
        // Who changes elements alone knows what is so afterwards.
        self.known = None;
        let mut batch = Requests::default();
        // The subsystem's number stands in `res_id`, in the network's order.
        batch.push(BATCH_BEGIN, 0, &[0, 0, 0, NFTABLES]).be32(1, generation);
        fill(&mut batch);
        batch.ask_receipt();
        batch.push(BATCH_END, 0, &[0, 0, 0, NFTABLES]);
        self.conn.all("nftables batch", &mut batch)
    }
}

/// Appends an element's coming or going.
pub(crate) fn write_element(batch: &mut Requests, kind: u16, flags: u16, element: &Element) {
    let mut attrs = batch.push(nft(kind), flags, &header(element.set.table().family()));
    attrs.text(1, TABLE).text(2, element.set.name()).nest(3, |list| write_key(list, &element.key));
}

/// Appends the end of the tables that are there.
pub(crate) fn write_drop(batch: &mut Requests, tables: [bool; 2]) {
    for (table, there) in Table::BOTH.into_iter().zip(tables) {
        if there {
            batch.push(nft(DELTABLE), 0, &header(table.family())).text(1, TABLE);
        }
    }
}
