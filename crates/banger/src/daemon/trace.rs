//! What an operation asks of the root helper, for a caller that wants to know.
//!
//! An operation runs on its call's own thread, and so do its calls to the helper: they are noted there, and told when the
//! caller is told of anything else.

use crate::api::HelperCall;
use std::cell::RefCell;
use std::time::Instant;
use wire::client::{Error, Told};

/// Calls of this thread's operation that nobody was told of yet, since it began.
struct Noted {
    begun: Instant,
    calls: Vec<HelperCall>,
}

thread_local! {
    static NOTED: RefCell<Option<Noted>> = const { RefCell::new(None) };
}

/// Notes this thread's calls from now on; `begun` is when its operation began.
pub(crate) fn begin(begun: Instant) {
    NOTED.set(Some(Noted { begun, calls: Vec::new() }));
}

/// A call to the helper is over.
pub(crate) fn note(told: &Told<'_>) {
    NOTED.with_borrow_mut(|noted| {
        let Some(noted) = noted else { return };
        let us = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let error = told.error.map(|error| match error {
            Error::Refused(refused) => refused.code.map_or("error", wire::Code::as_str).to_owned(),
            Error::Io(_) | Error::Reply(_) => "no answer".to_owned(),
        });
        let at_us = us(noted.begun.elapsed().saturating_sub(told.took));
        let (method, op_id) = (told.method.to_owned(), told.op_id.to_owned());
        noted.calls.push(HelperCall { method, op_id, at_us, us: us(told.took), error });
    });
}

/// What was noted since it was last asked for.
pub(crate) fn take() -> Vec<HelperCall> {
    NOTED.with_borrow_mut(|noted| noted.as_mut().map(|noted| std::mem::take(&mut noted.calls)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn calls_are_noted_where_they_are_wanted_and_told_once() {
        let call = || note(&Told { method: "priv.x", op_id: "op-1", took: Duration::from_millis(2), error: None });
        call();
        assert!(take().is_empty(), "nobody wants to know");
        begin(Instant::now());
        call();
        note(&Told {
            error: Some(&Error::Reply("?".into())),
            ..Told { method: "priv.y", op_id: "", took: Duration::ZERO, error: None }
        });
        let told = take();
        assert_eq!((told.len(), told[0].us, told[0].method.as_str()), (2, 2000, "priv.x"));
        assert_eq!((told[0].error.as_deref(), told[1].error.as_deref()), (None, Some("no answer")));
        assert!(take().is_empty());
    }
}
