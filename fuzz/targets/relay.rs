//! The relay's frames from a hostile other end, against either end, which does with each event what a front-end does.
#![no_main]

use agent::relay::{Event, Mux};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, mut bytes)) = data.split_first() else { return };
    let mut mux = match first & 3 {
        0 => Mux::guest(),
        1 => Mux::host_resuming([7; 16]),
        _ => Mux::host([7; 16]),
    };
    if first & 4 != 0 {
        let _ = mux.open(1023);
    }
    let step = usize::from(first >> 3) * 37 + 1;
    while !bytes.is_empty() {
        let (now, later) = bytes.split_at(step.min(bytes.len()));
        bytes = later;
        let result = mux.receive(now);
        let events: Vec<Event> = mux.events().collect();
        for event in events {
            react(&mut mux, event, first);
        }
        assert!(mux.streams() <= agent::relay::MAX_STREAMS);
        if result.is_err() {
            assert!(mux.receive(now).is_err() || first & 3 == 0, "a dead end came back");
            return;
        }
        // Half of the time the other end doesn't read.
        if first & 4 == 0 {
            let n = mux.output().len();
            mux.wrote(n);
        }
    }
});

fn react(mux: &mut Mux, event: Event, first: u8) {
    match event {
        Event::Opened { stream, port } if port % 2 == 0 => mux.accept(stream),
        Event::Opened { stream, .. } => mux.refuse(stream),
        Event::Data(stream, bytes) => {
            mux.consumed(stream, bytes.len());
            assert!(mux.send(stream, &bytes) <= bytes.len());
        }
        Event::Finished(stream) if first & 8 == 0 => mux.finish(stream),
        Event::Finished(stream) => mux.reset(stream),
        Event::Synced | Event::Connected(_) | Event::Credit(_) | Event::Reset(_) => {}
    }
}
