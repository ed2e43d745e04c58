//! Loop devices are asked in a thread that may be left behind.
//!
//! What a loop device is bound to is asked of the file's own file system. That one may be a user's (FUSE; his desktop
//! binds loop devices for him) and never answer: it must hold up nobody but that thread.

use crate::fail::Fail;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::name::dm::LoopNumber;

/// How long one gets to answer: also where the thread that asks gets no processor for a while.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who is being asked, and since when.
static ASKED: Mutex<BTreeMap<LoopNumber, Instant>> = Mutex::new(BTreeMap::new());

fn asked() -> MutexGuard<'static, BTreeMap<LoopNumber, Instant>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at each of these. One that does not answer is left out, and not asked again before it has.
pub(super) fn each<T: Send + 'static>(
    numbers: Vec<LoopNumber>,
    look: fn(LoopNumber) -> Result<T, Fail>,
) -> Result<Vec<T>, Fail> {
    let is_mute = |number: &LoopNumber| asked().get(number).is_some_and(|since| since.elapsed() > PATIENCE);
    let mut left: Vec<LoopNumber> = numbers.into_iter().filter(|number| !is_mute(number)).collect();
    left.reverse();
    let mut found = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let answers = begin(left.iter().rev().copied().collect(), look)?;
        while left.pop().is_some() {
            match answers.recv_timeout(PATIENCE) {
                Ok(answer) => found.push(answer?),
                // The thread is left behind, or gone: the rest is another's.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
    }
    Ok(found)
}

fn begin<T: Send + 'static>(
    numbers: Vec<LoopNumber>,
    look: fn(LoopNumber) -> Result<T, Fail>,
) -> Result<mpsc::Receiver<Result<T, Fail>>, Fail> {
    let (say, answers) = mpsc::channel();
    let thread = std::thread::Builder::new().name("loops".into()).stack_size(128 << 10).spawn(move || {
        for number in numbers {
            asked().entry(number).or_insert_with(Instant::now);
            let answer = look(number);
            asked().remove(&number);
            if say.send(answer).is_err() {
                return;
            }
        }
    });
    let failed = |error| Fail::new("there is no thread to look at loop devices; try again").because(error);
    thread.map(|_| answers).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::RwLock;

    // Numbers that no test of a real loop device has.
    const MUTE: LoopNumber = LoopNumber(u32::MAX);
    static GATE: RwLock<()> = RwLock::new(());

    fn look(number: LoopNumber) -> Result<LoopNumber, Fail> {
        if number == MUTE {
            drop(GATE.read().unwrap());
        }
        Ok(number)
    }

    #[test]
    fn one_that_never_answers_holds_nobody() {
        let all = vec![LoopNumber(u32::MAX - 2), MUTE, LoopNumber(u32::MAX - 1)];
        let others = [all[0], all[2]];
        let shut = GATE.write().unwrap();
        assert_eq!(each(all.clone(), look).unwrap(), others);
        // It is known by now: nobody waits for it, nobody asks it.
        std::thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        assert_eq!(each(all.clone(), look).unwrap(), others);
        assert!(begun.elapsed() < PATIENCE / 2 && each(vec![MUTE], look).unwrap().is_empty());
        drop(shut);
        let end = Instant::now() + Duration::from_secs(5);
        while each(all.clone(), look).unwrap() != all {
            assert!(Instant::now() < end, "it is not asked again");
        }
    }
}
