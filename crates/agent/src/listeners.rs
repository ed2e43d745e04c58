//! The guest's list of who listens, as the host takes it: lines of JSON, of which nothing is believed.

use crate::protocol::{Listener, ProtocolError};

/// The most listeners that are taken.
pub const MAX: usize = 1024;
/// The most bytes of a line.
const MAX_LINE: usize = 512;

/// Lines on their way.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    taken: Vec<Listener>,
}

impl Lines {
    /// Takes bytes as they come. What this version doesn't know, and a port of 0, is left out.
    ///
    /// # Errors
    /// [`ProtocolError::BadPayload`] for a line that isn't one, `TooMany` above [`MAX`].
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.held.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.held);
            self.line(&line)?;
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() > MAX_LINE { Err(ProtocolError::BadPayload) } else { Ok(()) }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), ProtocolError> {
        if self.taken.len() >= MAX {
            return Err(ProtocolError::TooMany);
        }
        if line.first() != Some(&b'{') || line.len() > MAX_LINE {
            return Err(ProtocolError::BadPayload);
        }
        let listener: Listener = serde_json::from_slice(line).map_err(|_| ProtocolError::BadPayload)?;
        if matches!(&*listener.proto, "tcp" | "udp") && listener.port != 0 {
            self.taken.push(listener);
        }
        Ok(())
    }

    /// All of them, once the last byte has come.
    ///
    /// # Errors
    /// [`ProtocolError::BadPayload`] in the middle of a line.
    pub fn end(self) -> Result<Vec<Listener>, ProtocolError> {
        if self.held.is_empty() { Ok(self.taken) } else { Err(ProtocolError::BadPayload) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "{\"proto\":\"tcp\",\"address\":\"127.0.0.1\",\"port\":8000,\"program\":\"web\"}\n";

    fn taken(text: &str, cut: usize) -> Result<Vec<Listener>, ProtocolError> {
        let mut lines = Lines::default();
        text.as_bytes().chunks(cut).try_for_each(|piece| lines.take(piece))?;
        lines.end()
    }

    #[test]
    fn lines_survive_any_cut_and_what_isn_t_known_is_left_out() {
        let text = format!("{LINE}{}{}{LINE}", LINE.replace("tcp", "sctp"), LINE.replace("8000", "0"));
        for cut in 1..text.len() {
            let all = taken(&text, cut).unwrap();
            assert_eq!(all.len(), 2);
            assert_eq!((all[1].port, all[1].program.as_deref()), (8000, Some("web")));
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [LINE.trim_end(), "\n", "[]\n", "{}\n", &LINE.replace("8000", "80000"), &LINE.replace("127", "x")] {
            assert_eq!(taken(text, 7), Err(ProtocolError::BadPayload), "{text}");
        }
        assert_eq!(taken(&"x".repeat(513), 100), Err(ProtocolError::BadPayload));
        assert_eq!(taken(&LINE.repeat(MAX + 1), 1000), Err(ProtocolError::TooMany));
        assert_eq!(taken(&LINE.repeat(MAX), 1000).map(|all| all.len()), Ok(MAX));
    }
}
