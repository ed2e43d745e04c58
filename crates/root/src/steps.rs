//! Act beside undo: an operation is done whole, or its steps are taken back in reverse order.
//!
//! Each step is a place where a failure or a kill can be asked for, by the configuration's `fault`. Production runs
//! the same code: an administrator alone can write that file, and it names no step there.

use crate::fail::Fail;

/// A fault that the configuration asks for: `fault = "create_tap.master:fail"`, or `:kill`, or `:stop`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    wanted: Option<(String, Kind)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The step is not taken and reports a failure.
    Fail,
    /// The step is taken, then the helper is killed.
    Kill,
    /// The helper stops before the step, until it is told to go on: others do something meanwhile.
    Stop,
}

impl Faults {
    /// Reads `operation.step:fail`, `:kill` or `:stop`; the empty text is no fault.
    pub(crate) fn parse(text: &str) -> Result<Faults, String> {
        if text.is_empty() {
            return Ok(Faults::default());
        }
        let kind = |word| match word {
            "fail" => Some(Kind::Fail),
            "kill" => Some(Kind::Kill),
            "stop" => Some(Kind::Stop),
            _ => None,
        };
        text.rsplit_once(':')
            .and_then(|(step, word)| Some(Faults { wanted: Some((step.to_owned(), kind(word)?)) }))
            .ok_or_else(|| format!("{text:?} is not OPERATION.STEP:fail, :kill or :stop"))
    }

    fn at(&self, operation: &str, step: &str) -> Option<Kind> {
        let (wanted, kind) = self.wanted.as_ref()?;
        let (op, name) = wanted.split_once('.')?;
        (op == operation && name == step).then_some(*kind)
    }
}

/// What takes a step back.
type Undo<'a> = Box<dyn FnOnce() -> Result<(), Fail> + 'a>;

/// The steps of one operation, while it runs.
pub(crate) struct Steps<'a> {
    operation: &'static str,
    faults: &'a Faults,
    undo: Vec<(&'static str, Undo<'a>)>,
}

/// Runs an operation: where `body` fails, everything that it gave an undo for is undone, the last first.
pub(crate) fn run<'a, T>(
    operation: &'static str,
    faults: &'a Faults,
    body: impl FnOnce(&mut Steps<'a>) -> Result<T, Fail>,
) -> Result<T, Fail> {
    let mut steps = Steps { operation, faults, undo: Vec::new() };
    match body(&mut steps) {
        Ok(done) => Ok(done),
        Err(mut fail) => {
            while let Some((what, undo)) = steps.undo.pop() {
                if let Err(stayed) = undo() {
                    fail = fail.left_behind(what, stayed);
                }
            }
            Err(fail)
        }
    }
}

impl<'a> Steps<'a> {
    /// Takes a step.
    pub(crate) fn act<T>(&mut self, step: &'static str, act: impl FnOnce() -> Result<T, Fail>) -> Result<T, Fail> {
        let fault = self.faults.at(self.operation, step);
        if fault == Some(Kind::Fail) {
            return Err(Fail::new(format!("{}.{step} failed, as the configuration asks", self.operation)));
        }
        if fault == Some(Kind::Stop) {
            sys::pidfd::stop_self();
        }
        let done = act()?;
        if fault == Some(Kind::Kill) {
            sys::pidfd::kill_self();
        }
        Ok(done)
    }

    /// Says how what was done last is taken back.
    pub(crate) fn undo(&mut self, what: &'static str, undo: impl FnOnce() -> Result<(), Fail> + 'a) {
        self.undo.push((what, Box::new(undo)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn undone_in_reverse_and_what_stays_is_told() {
        let order = RefCell::new(Vec::new());
        let faults = Faults::parse("op.third:fail").unwrap();
        let failed = run("op", &faults, |steps| {
            steps.act("first", || Ok(()))?;
            steps.undo("first", || {
                order.borrow_mut().push(1);
                Ok(())
            });
            steps.act("second", || Ok(()))?;
            steps.undo("second", || {
                order.borrow_mut().push(2);
                Err(Fail::new("busy").because("unlink: EBUSY"))
            });
            steps.act("third", || Ok(()))
        })
        .unwrap_err();
        assert_eq!(*order.borrow(), [2, 1]);
        assert!(failed.message.contains("op.third") && failed.message.contains("second could not be undone"));
        assert!(failed.causes.iter().any(|cause| cause.contains("EBUSY")));
    }

    #[test]
    fn faults_are_read_strictly() {
        assert!(Faults::parse("").unwrap().wanted.is_none());
        assert!(Faults::parse("op.step").is_err() && Faults::parse("op.step:boom").is_err());
        assert!(Faults::parse("a.b:kill").unwrap().at("a", "c").is_none());
    }
}
