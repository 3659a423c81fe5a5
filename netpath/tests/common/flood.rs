//! A flood of numbered frames between several pods and the far end of the wire, inside the zone and outside it,
//! while something is done to the node. The receiving sockets are the witnesses.
//!
//! Nobody sends further ahead of its receiver than a window that every queue on the way has room for: what does not
//! arrive was lost on the node, not for want of room in a socket.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netpath::kernel::bpf::maps::Maps;
use netpath_ebpf::abi::Counters;

use super::node::{GATEWAY, INTERNET, Node, OUTSIDE_MAC, Pod};
use super::wire::{Mac, Port, RawSocket, udp_frame};
use super::{PATIENCE, eventually, pace, times};

/// Frames that may be under way in one direction of one pod.
const WINDOW: u64 = 32;
/// What every frame of a flood begins its payload with.
const MAGIC: &[u8; 8] = b"numbered";
/// Bytes in front of a UDP payload.
const HEADERS: usize = 14 + 20 + 8;

/// What is sent, and what came of it, in one direction of one pod.
#[derive(Default)]
struct Stream {
    sent: AtomicU64,
    denied: AtomicU64,
    arrived: AtomicU64,
    /// What must not be: a frame from outside the zone, or out of turn, or twice.
    wrong: Mutex<Vec<String>>,
    /// Nothing more will be sent.
    ended: AtomicBool,
    /// Where a number stands that the last one did not lead to.
    next: AtomicU64,
}

/// Somebody on the master whom netpath does not know, as the flood sees them: a MAC, an address, and the ends that
/// their frames are sent and received at.
pub(crate) struct Stranger {
    pub(crate) what: &'static str,
    pub(crate) mac: Mac,
    pub(crate) address: Ipv4Addr,
    pub(crate) out: Box<dyn Port>,
    pub(crate) inner: Box<dyn Port>,
}

/// Runs `act` while strangers and the far end flood each other, from everywhere to everywhere: nobody polices them,
/// so every frame must arrive, once and in turn.
#[track_caller]
pub(crate) fn among_strangers<T>(node: &Node, strangers: &[Stranger], act: impl FnOnce() -> T) -> T {
    let streams: Vec<[Stream; 2]> = strangers.iter().map(|_| Default::default()).collect();
    let outer: Vec<_> = strangers.iter().map(|_| node.far_end()).collect();
    let (sending, receiving) = (AtomicBool::new(true), AtomicBool::new(true));
    let (far, streams) = (&node.far_end(), &streams);
    let peer = |number: u64| if number.is_multiple_of(2) { GATEWAY } else { INTERNET };
    let result = thread::scope(|scope| {
        let deliver = move |frame: &[u8], way: usize| {
            let Some((stranger, inside, number)) = decode(frame) else { return };
            let Some(stream) = streams.get(stranger).map(|ways| &ways[way]) else { return };
            stream.arrive(inside, number);
        };
        let (sending, receiving) = (&sending, &receiving);
        scope.spawn(move || drain(far, |frame| deliver(frame, 0), receiving));
        for (index, (stranger, outer)) in strangers.iter().zip(&outer).enumerate() {
            let Stranger { mac, address, out, inner, .. } = stranger;
            scope.spawn(move || {
                let frame = |number| {
                    let payload = encode(index, true, number);
                    udp_frame((*mac, OUTSIDE_MAC), *address, peer(number), (1, 2), &payload)
                };
                streams[index][0].send_all(&**out, frame, sending);
            });
            scope.spawn(move || {
                let frame = |number| {
                    let payload = encode(index, true, number);
                    udp_frame((OUTSIDE_MAC, *mac), peer(number), *address, (1, 2), &payload)
                };
                streams[index][1].send_all(outer, frame, sending);
            });
            scope.spawn(move || drain(&**inner, |frame| deliver(frame, 1), receiving));
        }
        flowing(streams, (sending, receiving), act)
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    for (ways, stranger) in streams.iter().zip(strangers) {
        for (stream, way) in ways.iter().zip(["out", "in"]) {
            stream.is_whole(&format!("{} {way}", stranger.what));
        }
    }
    result
}

/// Runs `act` once frames flow everywhere, ends the sending, and waits until all that was sent has come.
fn flowing<T>(
    streams: &[[Stream; 2]],
    (sending, receiving): (&AtomicBool, &AtomicBool),
    act: impl FnOnce() -> T,
) -> thread::Result<T> {
    let enough = u64::from(times(100));
    let flows = || {
        streams.iter().flatten().all(|stream| stream.arrived.load(Ordering::Relaxed) >= enough).then_some(())
    };
    // The threads end also where something panics: the scope waits for them.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(PATIENCE, "traffic flows", flows);
        act()
    }));
    sending.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    let complete = || streams.iter().flatten().all(Stream::is_complete);
    while !complete() && Instant::now() < deadline {
        thread::park_timeout(Duration::from_millis(2));
    }
    receiving.store(false, Ordering::Relaxed);
    result
}

/// Runs `act` under the flood. All that is inside the zone must arrive, once and in turn; nothing else may; each
/// frame must count once; and no counter may ever go back.
#[track_caller]
pub(crate) fn under_flood<T>(node: &Node, pods: &[(&Pod, Ipv4Addr)], act: impl FnOnce() -> T) -> T {
    let before: Vec<_> = pods.iter().map(|(pod, _)| node.counters(pod)).collect();
    let streams: Vec<[Stream; 2]> = pods.iter().map(|_| Default::default()).collect();
    let (sending, receiving) = (AtomicBool::new(true), AtomicBool::new(true));
    let samples = AtomicU64::new(0);
    let far = &node.far_end();
    let sockets: Vec<_> = pods.iter().map(|(pod, _)| (pod.socket(), pod.socket(), node.far_end())).collect();
    let streams = &streams;
    let result = thread::scope(|scope| {
        let deliver = move |frame: &[u8], way: usize| {
            let Some((pod, inside, number)) = decode(frame) else { return };
            let Some(stream) = streams.get(pod).map(|ways| &ways[way]) else { return };
            stream.arrive(inside, number);
        };
        let (sending, receiving) = (&sending, &receiving);
        scope.spawn(move || drain(far, |frame| deliver(frame, 0), receiving));
        for (index, ((pod, own), (out, inner, outer))) in pods.iter().zip(&sockets).enumerate() {
            scope.spawn(move || {
                let frame = |to, number, inside| {
                    let payload = encode(index, inside, number);
                    udp_frame((pod.mac, OUTSIDE_MAC), *own, to, (1, 2), &payload)
                };
                streams[index][0].send(
                    out,
                    |number, inside| frame(if inside { GATEWAY } else { INTERNET }, number, inside),
                    sending,
                );
            });
            scope.spawn(move || {
                let frame = |from, number, inside| {
                    let payload = encode(index, inside, number);
                    udp_frame((OUTSIDE_MAC, pod.mac), from, *own, (1, 2), &payload)
                };
                streams[index][1].send(
                    outer,
                    |number, inside| frame(if inside { GATEWAY } else { INTERNET }, number, inside),
                    sending,
                );
            });
            scope.spawn(move || drain(inner, |frame| deliver(frame, 1), receiving));
        }
        scope.spawn(|| sample(node, pods, sending, &samples));
        flowing(streams, (sending, receiving), act)
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    for (index, (ways, (pod, _))) in streams.iter().zip(pods).enumerate() {
        for (stream, way) in ways.iter().zip(["out", "in"]) {
            stream.is_whole(&format!("pod {index} {way}"));
            let denied = stream.denied.load(Ordering::Relaxed);
            assert!(0 < denied, "pod {index} {way}: nothing tried to cross the zone");
        }
        let expected = ways
            .each_ref()
            .map(|stream| [&stream.sent, &stream.denied].map(|count| count.load(Ordering::Relaxed)));
        let counted = |now: &Counters| {
            let was = &before[index];
            [
                [now.tx_packets - was.tx_packets, now.tx_dropped - was.tx_dropped],
                [now.rx_packets - was.rx_packets, now.rx_dropped - was.rx_dropped],
            ]
        };
        // The last of those that are dropped on the way in may still be in a queue.
        let deadline = Instant::now() + PATIENCE;
        while counted(&node.counters(pod)) != expected && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(2));
        }
        assert_eq!(
            counted(&node.counters(pod)),
            expected,
            "pod {index}: passed and dropped, sent and received"
        );
    }
    assert!(0 < samples.into_inner(), "the counters were read");
    result
}

impl Stream {
    /// Sends numbered frames, each followed by one that tries to cross the zone, no further ahead than the window.
    fn send(&self, socket: &RawSocket, frame: impl Fn(u64, bool) -> Vec<u8>, sending: &AtomicBool) {
        while sending.load(Ordering::Relaxed) {
            let Some(number) = self.send_next(socket, |number| frame(number, true)) else { continue };
            // On the way out a drop is an error here; the far end is the witness.
            let _ = socket.send(&frame(number, false));
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
        self.ended.store(true, Ordering::Release);
    }

    /// Sends numbered frames, no further ahead than the window.
    fn send_all(&self, port: &dyn Port, frame: impl Fn(u64) -> Vec<u8>, sending: &AtomicBool) {
        while sending.load(Ordering::Relaxed) {
            self.send_next(port, &frame);
        }
        self.ended.store(true, Ordering::Release);
    }

    /// Sends the next frame, and says its number, unless too many are under way.
    fn send_next(&self, port: &dyn Port, frame: impl Fn(u64) -> Vec<u8>) -> Option<u64> {
        let number = self.sent.load(Ordering::Relaxed);
        if WINDOW <= number - self.arrived.load(Ordering::Relaxed) {
            thread::park_timeout(Duration::from_micros(200));
            return None;
        }
        match port.send(&frame(number)) {
            Ok(()) => self.sent.store(number + 1, Ordering::Relaxed),
            Err(error) => self.blame(format!("{number} was refused: {error}")),
        }
        if let Some(pause) = pace() {
            thread::park_timeout(pause);
        }
        Some(number)
    }

    fn arrive(&self, inside: bool, number: u64) {
        if !inside {
            return self.blame(format!("{number} from outside the zone"));
        }
        let expected = self.next.swap(number + 1, Ordering::Relaxed);
        if number != expected {
            self.blame(format!("{number} instead of {expected}"));
        }
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    fn is_complete(&self) -> bool {
        self.ended.load(Ordering::Acquire)
            && self.arrived.load(Ordering::Relaxed) == self.sent.load(Ordering::Relaxed)
    }

    /// All that was sent has arrived, and nothing else.
    #[track_caller]
    fn is_whole(&self, whose: &str) {
        let [sent, arrived] = [&self.sent, &self.arrived].map(|count| count.load(Ordering::Relaxed));
        let wrong = self.wrong.lock().expect("nobody panicked");
        assert!(wrong.is_empty(), "{whose}: {wrong:?}");
        assert_eq!(arrived, sent, "{whose}: lost");
    }

    fn blame(&self, what: String) {
        let mut wrong = self.wrong.lock().expect("nobody panicked");
        if wrong.len() < 8 {
            wrong.push(what);
        }
    }
}

/// The number stands there a second time, inverted: whatever it is the wrong checksum of the datagram stays wrong,
/// so that no receiver ever answers.
fn encode(pod: usize, inside: bool, number: u64) -> Vec<u8> {
    let pod = u8::try_from(pod).expect("a few pods");
    [&MAGIC[..], &[pod, u8::from(inside)], &number.to_be_bytes(), &(!number).to_be_bytes()].concat()
}

fn decode(frame: &[u8]) -> Option<(usize, bool, u64)> {
    let payload = frame.get(HEADERS..HEADERS + 18)?.strip_prefix(MAGIC)?;
    let number = u64::from_be_bytes(payload[2..10].try_into().ok()?);
    Some((payload[0].into(), payload[1] == 1, number))
}

fn drain(socket: &dyn Port, mut deliver: impl FnMut(&[u8]), receiving: &AtomicBool) {
    while receiving.load(Ordering::Relaxed) {
        if let Some(frame) = socket.receive(Duration::from_millis(50)) {
            deliver(&frame);
        }
    }
}

/// Reads all counters again and again: none of them may be less than before.
fn sample(node: &Node, pods: &[(&Pod, Ipv4Addr)], sending: &AtomicBool, samples: &AtomicU64) {
    let mut last: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    while sending.load(Ordering::Relaxed) {
        // While maps are being made again there are none to read.
        if let Ok(Some(maps)) = Maps::open(&node.root.pins()) {
            for (name, now) in read(&maps, pods) {
                if let Some(before) = last.insert(name.clone(), now.clone()) {
                    let went_back = before.iter().zip(&now).any(|(before, now)| now < before);
                    assert!(!went_back, "{name} went back: {before:?} {now:?}");
                }
            }
            samples.fetch_add(1, Ordering::Relaxed);
        }
        thread::park_timeout(Duration::from_millis(1));
    }
}

fn read(maps: &Maps, pods: &[(&Pod, Ipv4Addr)]) -> Vec<(String, Vec<u64>)> {
    let mut found = Vec::new();
    let Ok(counters) = maps.counters() else { return found };
    for (index, (pod, _)) in pods.iter().enumerate() {
        let Ok(Some(row)) = maps.endpoint(pod.key) else { continue };
        let c = counters.endpoint(row.id);
        let totals = vec![
            c.tx_packets,
            c.tx_bytes,
            c.rx_packets,
            c.rx_bytes,
            c.tx_dropped,
            c.rx_dropped,
            c.tx_audited,
            c.rx_audited,
        ];
        found.push((format!("counters of pod {index}"), totals));
        if let Ok(drops) = maps.drops(row.id) {
            found.push((format!("drops of pod {index}"), [drops.tx_dropped, drops.rx_dropped].concat()));
        }
    }
    let m = counters.master(1);
    let totals = vec![
        m.host_packets,
        m.host_dropped,
        m.unknown_passed,
        m.unknown_dropped,
        m.group_packets,
        m.events_emitted,
        m.events_limited,
        m.events_lost,
    ];
    found.push(("counters of the master".to_owned(), totals));
    found
}
