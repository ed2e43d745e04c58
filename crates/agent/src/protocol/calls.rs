//! What the host asks for: the JSON of CALL.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

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
    /// Take up an exec that lingers.
    Attach(Attach),
    /// Refuse all but `start` from now on: this machine is about to be saved, and what is loaded is another.
    Arm {
        /// The version that the host chose.
        v: u16,
        /// Files that `start` will bring, by their absolute paths; for an agent whose HELLO has `files`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        files: Vec<String>,
    },
    /// Become a machine of its own; ARGS and ENV follow where there is an exec in it.
    Start(Box<Start>),
    /// Set the clock, where it is off.
    Time {
        /// The version that the host chose.
        v: u16,
        /// The host's time, in nanoseconds since 1970.
        unix_ns: u64,
        /// Move the clock by so much, however far it is off; for an agent whose HELLO has `adjust`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by_ns: Option<i64>,
    },
    /// Add the host's randomness to the guest's.
    Entropy {
        /// The version that the host chose.
        v: u16,
        /// 64 bytes, as 128 hexadecimal digits.
        bytes: String,
    },
    /// Make files out of a tar that follows as stream 1; answered by [`Copied`](crate::copy::Copied).
    Put(Put),
    /// Send files as a tar on stream 2; the same answer then.
    Get(Get),
    /// Connect to a port of the guest's: STARTED once that is so, both streams until their ends, then a REPLY.
    Dial(Dial),
    /// The guest's figures: [`Stats`].
    Stats {
        /// The version that the host chose.
        v: u16,
    },
    /// Who listens: lines of JSON on stream 2, each a [`Listener`](super::Listener), then a REPLY.
    ListenList {
        /// The version that the host chose.
        v: u16,
    },
}

impl Call {
    /// The version that the host chose.
    pub fn version(&self) -> u16 {
        match self {
            Self::Exec(Exec { v, .. }) | Self::Attach(Attach { v, .. }) => *v,
            Self::Start(start) => start.v,
            Self::Put(Put { v, .. }) | Self::Get(Get { v, .. }) | Self::Dial(Dial { v, .. }) => *v,
            Self::Ping { v }
            | Self::Down { v, .. }
            | Self::Arm { v, .. }
            | Self::Time { v, .. }
            | Self::Entropy { v, .. }
            | Self::Stats { v }
            | Self::ListenList { v } => *v,
        }
    }
}

/// Which exec to take up, and where each output goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The version that the host chose.
    pub v: u16,
    /// STARTED's id.
    pub id: String,
    /// How many bytes of the output the host has.
    pub out: u64,
    /// How many of the error output.
    pub err: u64,
}

/// What makes a machine another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The version that the host chose.
    pub v: u16,
    /// The host's time, in nanoseconds since 1970, read when this was sent.
    pub unix_ns: u64,
    /// 64 bytes of the host's randomness, as 128 hexadecimal digits.
    pub entropy: String,
    /// Its name.
    pub hostname: Option<String>,
    /// `/etc/machine-id`: 32 hexadecimal digits.
    pub machine_id: Option<String>,
    /// Its interface.
    pub network: Option<Interface>,
    /// `/etc/resolv.conf`; empty: left alone.
    pub resolver: Vec<Ipv4Addr>,
    /// Files of its own, for an agent whose HELLO has `files`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<OwnFile>,
    /// Then run this.
    pub exec: Option<Exec>,
}

/// A small file of one machine's, which its template has not. All of them have to fit into one CALL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnFile {
    /// An absolute path in a directory that is there.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
    /// Its content.
    pub text: String,
    /// Whether the disk is to have it, and not the machine's memory alone.
    pub lasting: bool,
}

/// A network interface's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name in the guest.
    pub device: String,
    /// Its hardware address, `06:00:ac:10:00:02`; `null`: as it is.
    pub mac: Option<String>,
    /// Its address and prefix, `172.16.0.2/24`.
    pub address: String,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
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

/// Where files go in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// The version that the host chose.
    pub v: u16,
    /// An absolute path.
    pub to: String,
    /// It has to be a directory, and the files go into it. If not: they do so where it is one, else it is the first part's
    /// new name.
    pub into: bool,
    /// Whose they become, `user`, `user:group` or numbers; `null`: root's.
    pub owner: Option<String>,
    /// What is there is replaced.
    pub clobber: bool,
    /// What else of the archive is kept.
    #[serde(default, skip_serializing_if = "Keep::is_plain")]
    pub keep: Keep,
}

/// What a copy keeps beside content, permissions and times of files. All but `Plain` is for agents that have `xattr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Nothing.
    #[default]
    Plain,
    /// Holes, and extended attributes of users: `user.*`. REPLY names the first of what was left out.
    User,
    /// All attributes, and owners by their numbers.
    All,
}

impl Keep {
    fn is_plain(&self) -> bool {
        *self == Keep::Plain
    }
}

/// Which files come out of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// The version that the host chose.
    pub v: u16,
    /// An absolute path.
    pub from: String,
    /// What a symbolic link leads to comes in its place.
    pub follow: bool,
    /// The content of a directory, without the directory itself.
    pub contents: bool,
    /// What else the archive has.
    #[serde(default, skip_serializing_if = "Keep::is_plain")]
    pub keep: Keep,
    /// Directories that are left out with all that is in them, and not counted: `/a/b` is one below what is asked for, `b` each
    /// of that name. For agents that have `leave`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leave: Vec<String>,
}

/// The most names that a `get` may leave out, and the most bytes of all of them: a call is one control payload.
pub const MAX_LEAVE: (usize, usize) = (256, 8 * 1024);

/// What to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// The version that the host chose.
    pub v: u16,
    /// `tcp`.
    pub net: String,
    /// An address of the guest's own.
    pub addr: std::net::IpAddr,
    /// Its port.
    pub port: u16,
}
