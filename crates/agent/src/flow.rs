//! The credit of one stream, as each end counts it: a sender sends nothing beyond what was granted, a receiver grants what
//! it has passed on, when half is used up. So no more than [`GRANT`] bytes of a stream are ever held anywhere.

use crate::protocol::{GRANT, ProtocolError};

/// What may still be sent on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    granted: u32,
}

impl Default for Sender {
    fn default() -> Self {
        Self { granted: GRANT }
    }
}

impl Sender {
    /// How many bytes may be sent now.
    pub fn room(&self) -> usize {
        self.granted as usize
    }

    /// So many were sent; not more than [`Sender::room`].
    pub fn sent(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.room());
        self.granted = self.granted.saturating_sub(len(bytes));
    }

    /// The other end granted more.
    ///
    /// # Errors
    /// [`ProtocolError::Grant`], where that is more than there can be.
    pub fn grant(&mut self, bytes: u32) -> Result<(), ProtocolError> {
        let sum = self.granted.checked_add(bytes).filter(|sum| *sum <= GRANT);
        self.granted = sum.ok_or(ProtocolError::Grant)?;
        Ok(())
    }
}

/// What the other end may still send on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver {
    allowed: u32,
    /// Passed on, and not granted anew.
    owed: u32,
    ended: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { allowed: GRANT, owed: 0, ended: false }
    }
}

impl Receiver {
    /// So many bytes came.
    ///
    /// # Errors
    /// [`ProtocolError::Grant`] for more than was granted, `OutOfPlace` after the stream's end.
    pub fn take(&mut self, bytes: usize) -> Result<(), ProtocolError> {
        if self.ended {
            return Err(ProtocolError::OutOfPlace);
        }
        self.allowed = self.allowed.checked_sub(len(bytes)).ok_or(ProtocolError::Grant)?;
        Ok(())
    }

    /// So many of them were passed on; what is to be granted for it now.
    pub fn passed_on(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(len(bytes)).min(GRANT - self.allowed);
        if self.ended || self.owed < GRANT / 2 {
            return None;
        }
        let grant = std::mem::take(&mut self.owed);
        self.allowed += grant;
        Some(grant)
    }

    /// The stream ended.
    ///
    /// # Errors
    /// [`ProtocolError::OutOfPlace`], where it had before.
    pub fn end(&mut self) -> Result<(), ProtocolError> {
        if std::mem::replace(&mut self.ended, true) { Err(ProtocolError::OutOfPlace) } else { Ok(()) }
    }

    /// Whether it ended.
    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

fn len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_t_be_is_refused() {
        let mut sender = Sender::default();
        assert_eq!(sender.grant(1), Err(ProtocolError::Grant));
        sender.sent(10);
        assert_eq!(sender.grant(u32::MAX), Err(ProtocolError::Grant));
        assert_eq!((sender.grant(10), sender.room()), (Ok(()), GRANT as usize));
        let mut receiver = Receiver::default();
        assert_eq!(receiver.take(GRANT as usize), Ok(()));
        assert_eq!(receiver.take(1), Err(ProtocolError::Grant));
        assert_eq!((receiver.end(), receiver.end()), (Ok(()), Err(ProtocolError::OutOfPlace)));
        assert_eq!(receiver.take(0), Err(ProtocolError::OutOfPlace));
        assert_eq!(receiver.passed_on(GRANT as usize), None, "nothing more will come");
    }

    proptest! {
        /// Both ends count the same, and never stand still while there is something to send.
        #[test]
        fn both_ends_agree(steps in proptest::collection::vec((1usize..100_000, 1usize..100_000), 1..200)) {
            let (mut sender, mut receiver, mut held) = (Sender::default(), Receiver::default(), 0);
            for (send, pass) in steps {
                let n = send.min(sender.room());
                sender.sent(n);
                prop_assert_eq!(receiver.take(n), Ok(()));
                held += n;
                prop_assert!(held <= GRANT as usize);
                let n = pass.min(held);
                held -= n;
                if let Some(grant) = receiver.passed_on(n) {
                    prop_assert_eq!(sender.grant(grant), Ok(()));
                }
                prop_assert!(sender.room() > 0 || held > 0);
            }
        }
    }
}
