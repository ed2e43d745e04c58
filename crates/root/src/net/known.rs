//! What is known of our tables as long as their generation is the same, so that a change of one guest asks about that
//! guest alone, and nobody reads a thousand elements to count them.
//!
//! Whoever changes rules makes a new generation. Only packets change sets without one, and packets take nothing away:
//! what is there stays there, and what is not is asked for each time. Where the tables are this socket's alone, others'
//! generations are not about them, and none is asked for: the one that is known then counts our own changes.

use super::firewall::{Firewall, GETSETELEM, Seen};
use super::message::{Requests, attr};
use super::netlink::{QUESTION, Refused};
use super::ruleset::{header, nft, write_key};
use super::sets::{Element, Set, TABLE, Table};
use super::whose::{OWNED, Whose};
use std::collections::HashSet;

const GETTABLE: u16 = 1;
const GETGEN: u16 = 16;

/// The tables at a generation.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) generation: u32,
    tables: [Whose; 2],
    /// Elements that are there. What is not among them may be there too.
    present: HashSet<Element>,
    count: Option<Count>,
    /// All guests and ports are among them: no packet adds one.
    whole: bool,
}

/// How many elements there are of what comes and goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) guests: usize,
    pub(crate) ports: usize,
}

impl Known {
    /// More are not kept: then what is known is gathered anew.
    const MOST: usize = 16 << 10;

    /// Nothing yet, of tables as they were seen. `None` where a generation is not told, where a table is another's, which
    /// ends being so without a new generation, and where one is still to be claimed.
    fn new(seen: &Seen) -> Option<Known> {
        let stays = |whose: &Whose| match whose {
            Whose::Nobodys => true,
            Whose::Ours(flags) => [0, OWNED].contains(&(flags & OWNED)),
            Whose::Anothers => false,
        };
        let may = seen.generation != 0 && seen.tables.iter().all(stays);
        let Seen { generation, tables, .. } = *seen;
        may.then(|| Known { generation, tables, present: HashSet::new(), count: None, whole: false })
    }

    /// Whether the tables are this socket's alone: it is the only one that claims tables with our mark, and while it is
    /// open nobody else changes them.
    fn is_alone(&self) -> bool {
        self.tables.iter().all(|whose| matches!(whose, Whose::Ours(flags) if flags & OWNED == OWNED))
    }

    /// Whether it is known that an element is there, or not.
    fn tells(&self, element: &Element) -> bool {
        self.present.contains(element) || self.whole && matches!(element.set, Set::Guests | Set::Ports)
    }

    /// The same after a change of ours.
    pub(super) fn changed(mut self, add: &[Element], remove: &[Element]) -> Known {
        let of = |elements: &[Element], set| elements.iter().filter(|element| element.set == set).count();
        self.count = self.count.map(|count| Count {
            guests: (count.guests + of(add, Set::Guests)).saturating_sub(of(remove, Set::Guests)),
            ports: (count.ports + of(add, Set::Ports)).saturating_sub(of(remove, Set::Ports)),
        });
        for element in remove {
            self.present.remove(element);
        }
        if self.present.len() + add.len() > Known::MOST {
            self.present.clear();
            self.whole = false;
        }
        self.present.extend(add);
        // Each transaction is one generation; the kernel took ours on the one that was seen.
        self.generation = self.generation.wrapping_add(1);
        self
    }
}

impl Firewall {
    /// How many guests and taps the tables hold at the moment that was `seen`.
    pub(crate) fn count(&mut self, seen: &Seen) -> Result<Count, Refused> {
        if let Some(count) = self.known_at(seen.generation).and_then(|known| known.count) {
            return Ok(count);
        }
        let (guests, ports) = (self.elements(Set::Guests)?, self.elements(Set::Ports)?);
        let count = Count { guests: guests.len(), ports: ports.len() };
        if let Some(known) = self.known_at(seen.generation) {
            known.count = Some(count);
            known.whole = known.present.len() + count.guests + count.ports <= Known::MOST;
            if known.whole {
                known.present.extend(guests.into_iter().chain(ports));
            }
        }
        Ok(count)
    }

    fn known_at(&mut self, generation: u32) -> Option<&mut Known> {
        self.known.as_mut().filter(|known| known.generation == generation)
    }

    /// Asks whether the tables are there, and which of these elements.
    pub(crate) fn look(&mut self, asked: &[Element]) -> Result<Seen, Refused> {
        if let Some(known) = &self.known {
            let unknown: Vec<_> = asked.iter().filter(|element| !known.tells(element)).copied().collect();
            let (generation, tables) = (known.generation, known.tables);
            let alone = known.is_alone().then_some(generation);
            let seen = self.ask(&unknown, Some(tables), alone)?;
            if generation == seen.generation {
                return Ok(self.learn(seen, asked));
            }
        }
        let seen = self.ask(asked, None, None)?;
        self.known = Known::new(&seen);
        Ok(self.learn(seen, asked))
    }

    /// The generation of all rules now.
    pub(crate) fn generation(&mut self) -> Result<u32, Refused> {
        self.ask(&[], Some(Default::default()), None).map(|seen| seen.generation)
    }

    /// The generation that a change by what was `seen` is bound to; 0, none, where nobody changed our tables since, and
    /// nobody else can.
    pub(super) fn bound_to(&self, seen: &Seen) -> u32 {
        let is_so = |known: &Known| known.is_alone() && known.generation == seen.generation;
        if self.known.as_ref().is_some_and(is_so) { 0 } else { seen.generation }
    }

    /// What is so for a tap and a guest that are new: all that stands is known to, nothing that is `new` is, and no packet
    /// taught a set anything before the tap's MAC, which is asked for. The rest is a guess, which the kernel checks: it
    /// refuses the change (EEXIST) where something is there. `None` where more has to be asked.
    pub(crate) fn guess(
        &mut self,
        new: &[Element],
        mac: Element,
        standing: &[Element],
    ) -> Result<Option<Seen>, Refused> {
        let may = |known: &Known| {
            known.is_alone()
                && standing.iter().all(|element| known.present.contains(element))
                && !new.iter().any(|element| known.present.contains(element))
        };
        if !self.known.as_ref().is_some_and(may) {
            return Ok(None);
        }
        let Seen { generation, tables, there, .. } = self.look(&[mac])?;
        let asked = [new, &[mac], standing].concat();
        let there_too = (0..asked.len()).map(|nth| nth > new.len()).collect();
        Ok((there == [false]).then_some(Seen { generation, tables, asked, there: there_too, is_guess: true }))
    }

    /// Adds what was seen to what is known, and answers from both.
    fn learn(&mut self, seen: Seen, asked: &[Element]) -> Seen {
        let Some(Known { generation, tables, present, .. }) = &mut self.known else { return seen };
        let there = seen.asked.into_iter().zip(seen.there).filter(|(_, there)| *there);
        present.extend(there.map(|(element, _)| element));
        Seen {
            generation: *generation,
            tables: *tables,
            asked: asked.to_vec(),
            there: asked.iter().map(|element| present.contains(element)).collect(),
            is_guess: false,
        }
    }

    /// One question: these elements; the tables and the generation where they are not known.
    fn ask(&mut self, asked: &[Element], known: Option<[Whose; 2]>, generation: Option<u32>) -> Result<Seen, Refused> {
        let mut ask = Requests::default();
        if generation.is_none() {
            ask.push(nft(GETGEN), QUESTION, &header(0));
        }
        for table in Table::BOTH.into_iter().filter(|_| known.is_none()) {
            ask.push(nft(GETTABLE), QUESTION, &header(table.family())).text(1, TABLE);
        }
        for element in asked {
            let mut attrs = ask.push(nft(GETSETELEM), QUESTION, &header(element.set.table().family()));
            attrs.text(1, TABLE).text(2, element.set.name()).nest(3, |list| write_key(list, &element.key));
        }
        let call = "NFT_MSG_GETGEN, GETTABLE, GETSETELEM";
        let said = if ask.len() == 0 { Vec::new() } else { self.conn.ask(call, &mut ask)? };
        let mut said = said.into_iter();
        let generation = match generation {
            Some(known) => known,
            None => {
                let told = said.next().map(|said| said.good(call)).transpose()?.unwrap_or_default();
                let id = told.first().and_then(|body| attr(body.get(4..)?, 1)).and_then(|id| id.try_into().ok());
                id.map_or(0, u32::from_be_bytes)
            }
        };
        let mut tables = known.unwrap_or_default();
        if known.is_none() {
            for (whose, answer) in tables.iter_mut().zip(said.by_ref()) {
                *whose = Whose::told(answer.good(call))?;
            }
        }
        let mut there = Vec::with_capacity(asked.len());
        for (element, answer) in asked.iter().zip(said) {
            let found = answer.found(call)?;
            there.push(found && tables[usize::from(element.set.table() == Table::Bridge)].is_ours());
        }
        Ok(Seen { generation, tables, asked: asked.to_vec(), there, is_guess: false })
    }
}
