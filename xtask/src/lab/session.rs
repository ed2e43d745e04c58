//! The host's end of the channel into the lab: one command at a time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use lab::{Command, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a command has beside its own variables.
pub(super) const ENVIRONMENT: [&str; 5] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "USER=root",
    "LANG=C.UTF-8",
    "TERM=dumb",
];

/// How long a frame takes that has begun.
const FRAME: Duration = Duration::from_secs(30);
/// How often it gets an interrupt.
const POKES: Duration = Duration::from_millis(250);
/// So many wait unread at most: fewer than its port takes.
const MOST_POKES: u32 = 64;

pub(super) struct Session {
    from: UnixStream,
    to: Arc<Mutex<UnixStream>>,
    /// Pokes that the lab has not answered.
    unanswered: Arc<AtomicU32>,
}

/// Where a command's streams go.
pub(super) trait Streams {
    fn output(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn errors(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// To this process's own.
pub(super) struct Own;

impl Streams for Own {
    fn output(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut to = io::stdout().lock();
        to.write_all(bytes)?;
        to.flush()
    }

    fn errors(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

/// Kept, as they came.
impl Streams for Vec<u8> {
    fn output(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn errors(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
}

impl Session {
    pub(super) fn new(channel: UnixStream) -> Result<Self> {
        // What the lab has begun to say it has said by then.
        channel.set_read_timeout(Some(FRAME))?;
        Ok(Self { to: Arc::new(Mutex::new(channel.try_clone()?)), from: channel, unanswered: Arc::default() })
    }

    /// Gives the guest the time and fresh random numbers, and waits for its answer.
    pub(super) fn wake(&mut self, limit: Duration) -> Result<()> {
        let random: [u8; 64] = super::random()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
        let body = [&now.to_le_bytes()[..], &random].concat();
        let end = Some(Instant::now() + limit);
        let answer = self.ask(end, Kind::Wake, &body, Kind::Awake).context("the lab doesn't answer");
        if answer? != random[..16] {
            bail!("the lab answers something else");
        }
        Ok(())
    }

    /// Mounts the second disk and makes links, from the first of each pair to the second.
    pub(super) fn attach(&mut self, links: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        let body = lab::join(links.iter().flat_map(|(link, to)| [link, to]));
        self.ask(None, Kind::Attach, &body, Kind::Attached).context("what was brought can't be mounted in the lab")?;
        Ok(())
    }

    /// Runs a command to its end and gives its exit status.
    pub(super) fn run(
        &mut self,
        command: &Command<'_>,
        input: impl Read + Send + 'static,
        streams: &mut impl Streams,
    ) -> Result<i32> {
        self.run_until(None, command, input, streams)
    }

    /// The same, where all of it has an end; after that the session is of no more use.
    pub(super) fn run_until(
        &mut self,
        end: Option<Instant>,
        command: &Command<'_>,
        input: impl Read + Send + 'static,
        streams: &mut impl Streams,
    ) -> Result<i32> {
        self.send(Kind::Run, &command.to_body())?;
        self.feed(input);
        let _poked = self.poked();
        loop {
            let (kind, body) = self.next(end)?;
            match kind {
                Kind::Output => streams.output(&body).context("can't write the command's output")?,
                Kind::Errors => streams.errors(&body).context("can't write the command's output")?,
                Kind::Ended => return Ok(i32::from_le_bytes(body[..].try_into()?)),
                Kind::Failed => bail!("the lab: {}", String::from_utf8_lossy(&body)),
                other => bail!("the lab says {other:?} where a command runs"),
            }
        }
    }

    /// The next frame but for answers to pokes, which has begun by `end`.
    fn next(&mut self, end: Option<Instant>) -> Result<(Kind, Vec<u8>)> {
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let time =
                left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
            if poll(&mut [PollFd::new(&self.from, PollFlags::IN)], time.as_ref())? == 0 {
                bail!("the time is up");
            }
            // What has begun is read to its end: who looks on finds a whole one behind it.
            match lab::receive(&mut self.from).context("the lab has ended")? {
                (Kind::Poked, _) => self.unanswered.store(0, Ordering::Relaxed),
                frame => return Ok(frame),
            }
        }
    }

    /// Runs a command without input that is expected to succeed.
    pub(super) fn must(&mut self, words: &[&str]) -> Result<()> {
        let mut said = Vec::new();
        match self.run(&own(words), io::empty(), &mut said)? {
            0 => Ok(()),
            status => bail!("in the lab, {} ended with {status}: {}", words.join(" "), String::from_utf8_lossy(&said)),
        }
    }

    /// What a script says beside a command that still runs, or as much of it as comes until the limit.
    pub(super) fn looked_at(&mut self, script: &str, limit: Duration) -> String {
        let mut said = Vec::new();
        let words = own(&["sh", "-c", script]);
        let done = self.run_until(Some(Instant::now() + limit), &words, io::empty(), &mut said);
        let ended = done.map_or_else(|e| format!("{e:#}"), |status| format!("ended with {status}"));
        format!("{}\n{ended}\n", String::from_utf8_lossy(&said))
    }

    /// Carries all of an input to the command, in a thread of its own, until either ends.
    fn feed(&self, mut input: impl Read + Send + 'static) {
        let to = Arc::clone(&self.to);
        std::thread::spawn(move || {
            let mut bytes = vec![0; lab::CHUNK];
            loop {
                // What can't be read has ended, for the command as for anyone.
                let n = input.read(&mut bytes).unwrap_or(0);
                let sent = lab::send(&mut *to.lock().unwrap_or_else(PoisonError::into_inner), Kind::Input, &bytes[..n]);
                if n == 0 || sent.is_err() {
                    return;
                }
            }
        });
    }

    /// Has it get an interrupt now and then, until what comes back is dropped. QEMU's emulation of SVM changes the word in which its
    /// processor is told of one without a lock, where a guest is entered and left (7.2, `helper_vmrun`, `do_vmexit`): one that comes
    /// in that moment is lost, and a processor that waits for its timer then waits for ever. The next one brings the lost one along.
    fn poked(&self) -> Sender<()> {
        let (to, unanswered) = (Arc::clone(&self.to), Arc::clone(&self.unanswered));
        let (until, over) = channel();
        std::thread::spawn(move || {
            while over.recv_timeout(POKES) == Err(RecvTimeoutError::Timeout) {
                // One that hears none of so many hears no more, and who looks at it finds room for his question.
                if unanswered.fetch_add(1, Ordering::Relaxed) >= MOST_POKES {
                    continue;
                }
                if lab::send(&mut *to.lock().unwrap_or_else(PoisonError::into_inner), Kind::Poke, &[]).is_err() {
                    return;
                }
            }
        });
        until
    }

    fn ask(&mut self, end: Option<Instant>, kind: Kind, body: &[u8], expected: Kind) -> Result<Vec<u8>> {
        self.send(kind, body)?;
        match self.next(end)? {
            (Kind::Failed, why) => bail!("the lab: {}", String::from_utf8_lossy(&why)),
            (kind, body) if kind == expected => Ok(body),
            (kind, _) => bail!("the lab says {kind:?}, not {expected:?}"),
        }
    }

    fn send(&self, kind: Kind, body: &[u8]) -> Result<()> {
        Ok(lab::send(&mut *self.to.lock().unwrap_or_else(PoisonError::into_inner), kind, body)?)
    }
}

/// A command of the lab's own.
fn own<'a>(words: &[&'a str]) -> Command<'a> {
    Command {
        folder: b"/",
        words: words.iter().map(|w| w.as_bytes()).collect(),
        environment: ENVIRONMENT.map(str::as_bytes).to_vec(),
    }
}
