//! The server's ways to its host: a VMM's vsock, or the streams of the relay's port.

use std::time::{Duration, Instant};

use agent::protocol::PORT;
use agent::relay::{Event, Stream};
use rustix::event::PollFlags;

use super::{Link, Serve, Target};
use crate::guest::console::{say, stage};
use crate::guest::port::Port;
use crate::guest::pump::{Next, Pump};

/// How long the port may take to appear after its driver.
const PORT_LIMIT: Duration = Duration::from_secs(10);

impl Serve {
    /// Looks for the way to the host: a vsock of a VMM's, or the port, which may still be on its way.
    pub(in crate::guest) fn find_host(&mut self) {
        let real = sys::vsock::local_cid().is_ok_and(|cid| (3..u32::MAX).contains(&cid));
        if real {
            match sys::vsock::listen(PORT, 64) {
                Ok(listener) => {
                    self.listener = Some(listener);
                    self.bell.ring_by_socket();
                    stage("vsock");
                }
                Err(error) => say(&format!("vsock port {PORT}: {error}")),
            }
        }
        if Port::is_possible() {
            let now = Instant::now();
            self.port_search = Some((now + PORT_LIMIT, now, Duration::from_millis(1)));
            self.search_port(now);
        } else if !real {
            say("no way to the host: neither a virtio-serial port nor a vsock");
        }
    }

    pub(super) fn search_port(&mut self, now: Instant) {
        let Some((limit, next, step)) = self.port_search else { return };
        if now < next {
            return;
        }
        self.port = Port::find();
        if self.port.is_some() {
            self.port_search = None;
            stage("relay");
        } else if now > limit {
            self.port_search = None;
            if self.listener.is_none() {
                say("no virtio-serial port named banger.agent");
            }
        } else {
            self.port_search = Some((limit, now + step, (step * 2).min(Duration::from_millis(50))));
        }
    }

    pub(super) fn port_ready(&mut self, got: PollFlags) {
        let Some(port) = &mut self.port else { return };
        if got.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            port.read(&mut self.buffer);
        }
        while let Some(event) = self.port.as_mut().and_then(|port| port.mux.next_event()) {
            self.relayed(event);
        }
    }

    fn relayed(&mut self, event: Event) {
        let Some(port) = &mut self.port else { return };
        match event {
            Event::Synced => {
                for target in std::mem::take(&mut self.streams).into_values() {
                    self.drop_target(target);
                }
                self.bell.ring_by_stream();
            }
            Event::Opened { stream, port: wanted } => self.opened(stream, wanted),
            Event::Connected(stream) => self.bell.connected(stream, &mut port.mux),
            Event::Data(stream, bytes) => match self.streams.get_mut(&stream) {
                Some(Target::Pump(pump)) => {
                    if pump.take(&bytes, &mut port.mux, stream) == Next::Drop {
                        self.streams.remove(&stream);
                    }
                }
                Some(Target::Call(id)) => {
                    if let Some((call, _)) = self.calls.get_mut(id) {
                        call.receive(&bytes, &mut self.machine);
                    }
                    port.mux.consumed(stream, bytes.len());
                }
                None => port.mux.consumed(stream, bytes.len()),
            },
            Event::Finished(stream) => match self.streams.get_mut(&stream) {
                Some(Target::Pump(pump)) => {
                    if pump.finished(&mut port.mux, stream) == Next::Drop {
                        self.streams.remove(&stream);
                    }
                }
                // A call has no half-close: its host is gone.
                Some(Target::Call(_)) => {
                    port.mux.finish(stream);
                    self.drop_stream(stream);
                }
                None => port.mux.finish(stream),
            },
            Event::Reset(stream) => {
                self.bell.reset(stream);
                self.drop_stream(stream);
            }
            Event::Credit(_) => {}
        }
    }

    fn opened(&mut self, stream: Stream, wanted: u32) {
        let target = match wanted {
            PORT => self.add_call(Link::Stream(stream)).map(Target::Call),
            other => Pump::connect(other).map(Target::Pump),
        };
        let Some(port) = &mut self.port else { return };
        match target {
            Some(target) => {
                if matches!(target, Target::Call(_)) {
                    port.mux.accept(stream);
                }
                self.streams.insert(stream, target);
            }
            None => port.mux.refuse(stream),
        }
    }

    fn drop_stream(&mut self, stream: Stream) {
        if let Some(target) = self.streams.remove(&stream) {
            self.drop_target(target);
        }
    }

    fn drop_target(&mut self, target: Target) {
        if let Target::Call(id) = target
            && let Some((call, link)) = self.calls.get_mut(&id)
        {
            call.host_is_gone();
            *link = Link::Gone;
        }
    }
}
