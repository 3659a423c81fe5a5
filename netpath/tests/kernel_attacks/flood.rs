//! A pod that drops frames on purpose, to drown what is told of others.

use std::thread;
use std::time::Duration;

use netpath::kernel::bpf::events::Consumer;
use netpath::kernel::bpf::maps::EVENT_BURST;
use netpath::observe::Event;
use netpath_ebpf::drop_reason::DropReason::{Ethertype, ZoneDeny};

use crate::arena::{A, Arena, B, strict};
use crate::common::node::{INTERNET, OUTSIDE_MAC, at};
use crate::common::wire::{marker, udp_frame};

/// Frames of the flood, of each kind and from each of two threads.
const FRAMES: u64 = 10_000;

#[test]
fn row_26_a_flood_of_drops_is_counted_to_the_last_and_drowns_nobody_elses_events() {
    let arena = Arena::new(&strict());
    let node = &arena.node;
    let mut consumer = Consumer::new(&node.root.pins(), &node.root.events_lock()).expect("the only one");
    let mut maps = node.maps();
    consumer.grant_all(&mut maps).expect("granted");
    let before = (node.totals(), node.drops(&arena.a), node.drops(&arena.b));

    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = arena.a.socket();
                let denied = udp_frame((arena.a.mac, OUTSIDE_MAC), A, INTERNET, (1, 2), &marker());
                let odd = arena.frame(0x88b5, &marker());
                for _ in 0..FRAMES {
                    socket.send(&denied).expect_err("it is dropped");
                    socket.send(&odd).expect_err("it is dropped");
                }
            });
        }
    });
    // One drop of somebody else's, behind all of that.
    let lone = udp_frame((arena.b.mac, OUTSIDE_MAC), B, INTERNET, (1, 2), &marker());
    arena.b.socket().send(&lone).expect_err("it is dropped");

    let now = (node.totals(), node.drops(&arena.a), node.drops(&arena.b));
    for reason in [ZoneDeny, Ethertype] {
        let counted = now.1.tx_dropped[at(reason)] - before.1.tx_dropped[at(reason)];
        assert_eq!(counted, 2 * FRAMES, "{}", reason.label());
    }
    assert_eq!(now.2.tx_dropped[at(ZoneDeny)] - before.2.tx_dropped[at(ZoneDeny)], 1);

    let mut events = Vec::new();
    let mut read = || {
        consumer.read(Duration::from_millis(20), |bytes| events.push(Event::decode(bytes).expect("an event")))
    };
    while read().expect("readable") > 0 {}
    let of = |id: u32| events.iter().filter(|event| event.endpoint == id).count();
    let budget = usize::try_from(EVENT_BURST).expect("small");
    let (flood, lone) = (of(node.row(&arena.a).id), of(node.row(&arena.b).id));
    assert_eq!(lone, 1, "the other pod's drop is told");
    assert!((budget..=2 * budget).contains(&flood), "{flood} events of two reasons, {budget} each");
    // Nothing is lost silently: what was not told was counted as withheld.
    let told = now.0.events_emitted - before.0.events_emitted;
    let withheld = now.0.events_limited - before.0.events_limited;
    let lost = now.0.events_lost - before.0.events_lost;
    assert_eq!((told, lost), (u64::try_from(flood + lone).expect("small"), 0));
    assert_eq!(told + withheld, 4 * FRAMES + 1);
}
