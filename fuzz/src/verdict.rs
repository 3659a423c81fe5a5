//! The reader and the verdict: any frame, any row, any zone.
//!
//! They must agree with the reference that was written a second time from the rules, whether the zone's prefixes
//! are inline or in tries, and must not depend on what lies behind the frame (`verdict` in `table::image` runs each
//! frame with several kinds of bytes there, and with the facts of the frame before).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpath_ebpf::abi::ZONE_PORT_SETS;

use crate::{
    cursor::Cursor,
    file_name,
    table::{
        cases,
        frames::{PEER_MAC, POD_MAC, between},
        image::{Image, Layout, endpoint, verdict},
        model::{self, Pod, Range, Rule, Setup, Zone},
        reference::{Way, decide},
    },
};

const WAYS: [Way; 2] = [Way::Egress, Way::Ingress];
/// Bits of the first byte.
const TAGGED: u8 = 1;
const OWN_WORLD: u8 = 2;
const OWN_MACS: u8 = 4;

/// First byte: how to read the rest. Then a world (the number of one of the table's, or a whole one), then the frame.
pub fn check(data: &[u8]) {
    let mut cursor = Cursor::new(data);
    let how = cursor.byte();
    let (pod, zone) = match how & OWN_WORLD {
        0 => cursor.one_of(&Setup::ALL).world(),
        _ => (pod(&mut cursor), zone(&mut cursor)),
    };
    let frame = cursor.rest();
    // Programs pass what has no whole Ethernet header; jumbo frames have nothing to say that 4 KiB have not.
    if frame.len() < 14 || 4096 < frame.len() {
        return;
    }
    let tagged = how & TAGGED != 0;
    for way in WAYS {
        let frame = match (how & OWN_MACS, way) {
            (0, Way::Egress) => between(frame, POD_MAC, PEER_MAC),
            (0, Way::Ingress) => between(frame, PEER_MAC, POD_MAC),
            _ => frame.to_vec(),
        };
        let expected = decide(&frame, tagged, way, &pod, zone.as_ref());
        for layout in [Layout::Fit, Layout::Tries] {
            let image = zone.as_ref().map(|zone| Image::new(zone, layout));
            let found = verdict(&frame, tagged, way, &endpoint(&pod), image.as_ref());
            assert_eq!(found, expected, "{way:?} {layout:?}: the verdict, and what the rules say");
        }
    }
}

/// The frames of the case table, each in the world it plays in.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for case in cases::all().into_iter().filter(cases::Case::is_small) {
        let world = Setup::ALL.iter().position(|setup| *setup == case.setup).unwrap_or_default();
        let head = [0, u8::try_from(world).unwrap_or_default()];
        seeds.push((file_name(case.name), [&head[..], &case.frame(Way::Egress)].concat()));
    }
    seeds
}

/// Addresses that mean something in the frames of the table, or any.
fn v4(cursor: &mut Cursor<'_>) -> Ipv4Addr {
    const KNOWN: [Ipv4Addr; 8] = [
        model::POD4,
        model::POD4_SECOND,
        model::NEAR4,
        model::DENIED4,
        model::FAR4,
        model::GATEWAY4,
        model::ONE_WAY4,
        Ipv4Addr::new(224, 0, 1, 1),
    ];
    match cursor.byte() {
        number @ 0..128 => KNOWN[usize::from(number) % KNOWN.len()],
        _ => Ipv4Addr::from(cursor.take::<4>()),
    }
}

fn v6(cursor: &mut Cursor<'_>) -> Ipv6Addr {
    const KNOWN: [Ipv6Addr; 9] = [
        model::POD6,
        model::POD6_LINK,
        model::NEAR6,
        model::NEAR6_LINK,
        model::DENIED6,
        model::FAR6,
        model::GATEWAY6,
        model::ONE_WAY6,
        model::ALL_NODES,
    ];
    match cursor.byte() {
        number @ 0..128 => KNOWN[usize::from(number) % KNOWN.len()],
        _ => Ipv6Addr::from(cursor.take::<16>()),
    }
}

fn pod(cursor: &mut Cursor<'_>) -> Pod {
    let what = cursor.byte();
    let v4s = (0..cursor.byte() % 5).map(|_| v4(cursor)).collect();
    let v6s = (0..cursor.byte() % 5).map(|_| v6(cursor)).collect();
    Pod {
        v4: v4s,
        v6: v6s,
        link_local: v6(cursor),
        gateway4: (what & 1 != 0).then(|| v4(cursor)),
        gateway6: (what & 2 != 0).then(|| v6(cursor)),
        dhcp: what & 4 != 0,
    }
}

/// Up to 31 rules: more than lie inline.
fn zone(cursor: &mut Cursor<'_>) -> Option<Zone> {
    let what = cursor.byte();
    if what == u8::MAX {
        return None;
    }
    let rules: Vec<Rule> = (0..what & 31).map(|_| rule(cursor)).collect();
    let mut zone = Zone::of(rules, what & 0x40 != 0);
    // The maps have room for so many.
    let with_ports = zone.rules.iter_mut().filter(|rule| !rule.ports.is_empty());
    with_ports.skip(ZONE_PORT_SETS as usize).for_each(|rule| rule.ports.clear());
    Some(zone)
}

fn rule(cursor: &mut Cursor<'_>) -> Rule {
    let [what, length] = cursor.take();
    let (net, length) = match what & 1 {
        0 => {
            let length = length % 33;
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            (IpAddr::from(Ipv4Addr::from(u32::from(v4(cursor)) & mask)), length)
        }
        _ => {
            let length = length % 129;
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            (IpAddr::from(Ipv6Addr::from(u128::from(v6(cursor)) & mask)), length)
        }
    };
    // Few zones fuzz well with ports, so that they are asked for by their own bits.
    let ports = if what & 0x18 == 0x18 { usize::from(what >> 5) + 1 } else { 0 };
    let ports = (0..ports).map(|_| range(cursor)).collect();
    Rule { net, length, egress: what & 2 != 0, ingress: what & 4 != 0, ports }
}

fn range(cursor: &mut Cursor<'_>) -> Range {
    const PROTOCOLS: [u8; 6] = [1, 2, 6, 17, 58, 132];
    let [what, first, last] = cursor.take();
    let protocol = cursor.one_of(&PROTOCOLS);
    // Around the ports of the table's frames, or all there are.
    let (first, last) = match what & 4 {
        0 => (u16::from(first) * 8, u16::from(last) * 8 + 7),
        _ => (0, u16::MAX),
    };
    // What has no ports is named as a whole.
    let (first, last) = match protocol {
        6 | 17 | 132 => (first.min(last), first.max(last)),
        _ => (0, u16::MAX),
    };
    Range { protocol, first, last, egress: what & 1 != 0, ingress: what & 2 != 0 }
}
