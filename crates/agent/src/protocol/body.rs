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
    /// This boot of the guest: 32 hexadecimal digits.
    pub boot: String,
    /// `self`, `handed-over` or `service`.
    pub init: String,
    /// What it can do, beyond `ping` and `down`.
    pub caps: Vec<String>,
}

/// What the host wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Nothing: answer.
    Ping {
        /// The version that the host chose.
        v: u16,
    },
    /// End the machine.
    Down {
        /// The version that the host chose.
        v: u16,
        /// A reset ends Firecracker and QEMU with `-no-reboot`; the rest wants its power off.
        how: Down,
        /// What the programs have between TERM and KILL.
        grace_ms: u32,
    },
    /// Run a program; ARGS and ENV follow.
    Exec(Exec),
}

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Down {
    /// Restart it, which ends most VMMs.
    Reset,
    /// Power off.
    Poweroff,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The version that the host chose.
    pub v: u16,
    /// A terminal of this size; `null`: three pipes.
    pub tty: Option<TtySize>,
    /// Whether the host will send input. If not, the program's input is empty.
    pub stdin: bool,
    /// A name of the guest's, or a number.
    pub user: String,
    /// An absolute path; empty: the user's home.
    pub cwd: String,
    /// Wait for the end of the output, not only of the program.
    #[serde(default)]
    pub hold: bool,
    /// How long to keep the call without a host.
    #[serde(default)]
    pub linger_s: u32,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// TERM, KILL, INT, HUP, QUIT, USR1, USR2 or ABRT.
    pub signal: String,
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
    /// `not_found`, `not_executable`, `bad_cwd`, `no_user`, `too_big`, `no_memory`, `no_pty`, `busy`, `protocol`,
    /// `unsupported`, `timeout` or `failed`.
    pub code: String,
    /// What was tried.
    pub step: String,
    /// The guest's errno, 0 where there was none.
    pub errno: i32,
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
