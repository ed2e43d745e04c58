//! One call through a virtio-serial port's socket (`-chardev socket,path=…,server=on,wait=off`), by hand:
//!
//!     port_call SOCKET ping | down | ring | exec PROGRAM [ARGUMENT]... | raw:PORT WORD...
//!
//! For trials without a front-end; it is the port's only user while it runs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agent::client::{Client, Program};
use agent::protocol::{Down, Exit, PORT};
use agent::relay::{Event, Mux, Stream};

type Failure = Box<dyn std::error::Error>;

/// One stream as something that reads and writes.
struct Line {
    port: UnixStream,
    mux: Mux,
    stream: Stream,
    held: Vec<u8>,
    ended: bool,
    rung: bool,
}

impl Line {
    fn open(path: &str, to: u32) -> Result<Self, Failure> {
        let port = UnixStream::connect(path)?;
        port.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut nonce = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
        let mut mux = Mux::host_resuming(nonce);
        let stream = mux.open(to)?;
        let mut line = Self { port, mux, stream, held: vec![], ended: false, rung: false };
        line.push()?;
        Ok(line)
    }

    fn push(&mut self) -> std::io::Result<()> {
        let n = self.mux.output().len();
        self.port.write_all(self.mux.output())?;
        self.mux.wrote(n);
        Ok(())
    }

    fn pull(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 32 * 1024];
        let n = self.port.read(&mut buffer)?;
        self.ended |= n == 0;
        self.mux.receive(&buffer[..n]).map_err(std::io::Error::other)?;
        while let Some(event) = self.mux.next_event() {
            match event {
                Event::Data(stream, bytes) => {
                    self.mux.consumed(stream, bytes.len());
                    self.held.extend(bytes);
                }
                Event::Opened { stream, port } => {
                    self.rung |= port == PORT;
                    self.mux.accept(stream);
                    self.mux.finish(stream);
                }
                Event::Finished(stream) => self.ended |= stream == self.stream,
                Event::Reset(stream) => {
                    eprintln!("stream {} reset", stream.number());
                    self.ended |= stream == self.stream;
                }
                Event::Synced | Event::Connected(_) | Event::Credit(_) => {}
            }
        }
        self.push()
    }
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.held.is_empty() && !self.ended {
            self.pull()?;
        }
        let n = into.len().min(self.held.len());
        into[..n].copy_from_slice(&self.held[..n]);
        self.held.drain(..n);
        Ok(n)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            let n = self.mux.send(self.stream, bytes);
            self.push()?;
            if n > 0 || bytes.is_empty() {
                return Ok(n);
            }
            self.pull()?;
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.push()
    }
}

fn call(args: &[&str]) -> Result<ExitCode, Failure> {
    let [path, what, rest @ ..] = args else { return Err("port_call SOCKET ping | down | ring | exec …".into()) };
    let begin = Instant::now();
    if let Some(port) = what.strip_prefix("raw:") {
        let mut line = Line::open(path, port.parse()?)?;
        line.write_all(rest.join(" ").as_bytes())?;
        let (stream, mut text) = (line.stream, Vec::new());
        line.mux.finish(stream);
        line.push()?;
        line.read_to_end(&mut text)?;
        std::io::stdout().write_all(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut line = Line::open(path, PORT)?;
    if *what == "ring" {
        while !line.rung {
            line.pull()?;
        }
        println!("rung after {:?}", begin.elapsed());
        return Ok(ExitCode::SUCCESS);
    }
    let client = Client::new(line)?;
    eprintln!("hello after {:?}: {:?}", begin.elapsed(), client.hello());
    match *what {
        "ping" => client.ping()?,
        "down" => client.down(Down::Reset, 2000)?,
        "exec" => {
            let output = client.exec(Program { args: rest, env: &[], user: "root", cwd: "", most: 64 << 20 })?;
            std::io::stdout().write_all(&output.stdout)?;
            std::io::stderr().write_all(&output.stderr)?;
            eprintln!("{:?} after {:?}", output.exit, begin.elapsed());
            return Ok(match output.exit {
                Exit::Code(exit) => ExitCode::from(exit.code),
                Exit::Signal(exit) => ExitCode::from(exit.signal.wrapping_add(128)),
            });
        }
        _ => return Err("what?".into()),
    }
    eprintln!("answered after {:?}", begin.elapsed());
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    call(&args).unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}
