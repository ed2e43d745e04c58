//! What the JSON frames hold. All of it is strict: one object, no key that isn't known, nothing after it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Frame, Kind, ProtocolError};

/// The agent's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The lowest and the highest version that it speaks.
    pub protocol: [u16; 2],
    /// The agent's own version.
    pub agent: String,
    /// This boot of the guest: 32 hexadecimal digits. The template's, where the connection was taken before START.
    pub boot: String,
    /// `self`, `handed-over` or `service`.
    pub init: String,
    /// What it can do, beyond `ping` and `down`.
    pub caps: Vec<String>,
}

/// The program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    /// The call's name, unique in this boot.
    pub id: String,
    /// Its process in the guest.
    pub pid: u32,
}

/// More may be sent on the frame's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// How many bytes more.
    pub bytes: u32,
}

/// A signal for the program's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Which.
    pub signal: SignalName,
}

/// The signals that a host sends. They travel by name: numbers are a machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "each is the signal of its name")]
pub enum SignalName {
    Term,
    Kill,
    Int,
    Hup,
    Quit,
    Usr1,
    Usr2,
    Abrt,
}

impl SignalName {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Term, Self::Kill, Self::Int, Self::Hup, Self::Quit, Self::Usr1, Self::Usr2, Self::Abrt];

    /// This machine's signal of that name.
    pub fn signal(self) -> rustix::process::Signal {
        use rustix::process::Signal as Sig;
        match self {
            Self::Term => Sig::TERM,
            Self::Kill => Sig::KILL,
            Self::Int => Sig::INT,
            Self::Hup => Sig::HUP,
            Self::Quit => Sig::QUIT,
            Self::Usr1 => Sig::USR1,
            Self::Usr2 => Sig::USR2,
            Self::Abrt => Sig::ABORT,
        }
    }

    /// The name of a signal's number on this machine; `None` for one that isn't sent to guests.
    pub fn of_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.signal().as_raw() == number)
    }
}

/// How the program ended: by its own exit or by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Exit {
    /// It exited.
    Code(ExitCode),
    /// It was ended.
    Signal(ExitSignal),
}

/// An exit's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitCode {
    /// 0 to 255.
    pub code: u8,
    /// Whether it is a shell's word that its command was killed, and the guest's memory was at its end; absent where not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
}

/// A signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitSignal {
    /// The signal's number in the guest.
    pub signal: u8,
    /// Whether a core was written.
    pub core: bool,
    /// Whether the guest's memory was at its end.
    pub oom: bool,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// `not_found`, `not_executable`, `bad_cwd`, `no_user`, `too_big`, `no_memory`, `no_pty`, `busy`, `armed`, `no_call`,
    /// `protocol`, `unsupported`, `timeout` or `failed`.
    pub code: String,
    /// What was tried.
    pub step: String,
    /// The guest's errno, 0 where there was none.
    pub errno: i32,
}

impl Exit {
    /// What a shell would say of it: the code, or 128 and the signal's number.
    pub fn status(self) -> u8 {
        match self {
            Self::Code(exit) => exit.code,
            Self::Signal(exit) => exit.signal.wrapping_add(128),
        }
    }

    /// Whether it was killed, or what it ran, as the guest's memory was at its end.
    pub fn is_out_of_memory(self) -> bool {
        match self {
            Self::Code(exit) => exit.oom,
            Self::Signal(exit) => exit.oom,
        }
    }
}

impl Frame {
    /// The payload as the object that its kind holds.
    ///
    /// # Errors
    /// [`ProtocolError::BadPayload`]
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ProtocolError> {
        // A struct would take an array too.
        if self.payload.first() != Some(&b'{') {
            return Err(ProtocolError::BadPayload);
        }
        serde_json::from_slice(&self.payload).map_err(|_| ProtocolError::BadPayload)
    }
}

/// Appends a frame with a JSON object.
pub fn encode_json<T: Serialize>(out: &mut Vec<u8>, kind: Kind, stream: u8, body: &T) {
    // These types have no map with keys that JSON lacks, the only thing that could fail.
    let payload = serde_json::to_vec(body).unwrap_or_default();
    super::encode(out, kind, stream, &payload);
}

/// The payload of ARGS or ENV; `None` where a string holds a NUL, or all of them are more than a frame takes.
pub fn encode_strings<S: AsRef<[u8]>>(strings: &[S]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for string in strings.iter().map(AsRef::as_ref) {
        if string.contains(&0) {
            return None;
        }
        out.extend_from_slice(string);
        out.push(0);
    }
    (out.len() <= super::MAX_PAYLOAD).then_some(out)
}

/// The strings of ARGS or ENV.
///
/// # Errors
/// [`ProtocolError::BadPayload`], where the last string has no NUL.
pub fn decode_strings(payload: &[u8]) -> Result<Vec<&[u8]>, ProtocolError> {
    let Some((0, body)) = payload.split_last() else {
        return if payload.is_empty() { Ok(Vec::new()) } else { Err(ProtocolError::BadPayload) };
    };
    Ok(body.split(|byte| *byte == 0).collect())
}
