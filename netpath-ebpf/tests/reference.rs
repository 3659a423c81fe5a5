//! The verdict against a reference that was written a second time from the rules: on the case table, and on
//! random and mutated frames, attachments and zones.

mod verdict;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpath_ebpf::{abi::ZONE_PORT_SETS, drop_reason::DropReason};
use proptest::{collection::vec, prelude::*, sample::select};
use verdict::{
    cases,
    frames::{self, POD_MAC},
    image::{Image, Layout, endpoint, plain, verdict},
    model::{self, Pod, Range, Rule, Setup, Zone},
    reference::{Way, decide},
};

const WAYS: [Way; 2] = [Way::Egress, Way::Ingress];

#[test]
fn the_table_the_reference_and_the_verdict_agree() {
    let mut wrong = Vec::new();
    for case in cases::all() {
        let (pod, zone) = case.setup.world();
        for way in WAYS {
            let (frame, expected) = (case.frame(way), case.expected(way));
            let by_rules = decide(&frame, false, way, &pod, zone.as_ref());
            if by_rules != expected {
                wrong.push(format!("{} ({way:?}): expected {expected:?}, reference {by_rules:?}", case.name));
            }
            for layout in [Layout::Fit, Layout::Tries] {
                let image = zone.as_ref().map(|zone| Image::new(zone, layout));
                let found = verdict(&frame, false, way, &endpoint(&pod), image.as_ref());
                if found != expected {
                    wrong.push(format!(
                        "{} ({way:?}, {layout:?}): expected {expected:?}, verdict {found:?}",
                        case.name
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Otherwise nothing is asked of another packet of their flow.
#[test]
fn the_table_has_plain_packets_of_every_kind_that_pass_and_that_do_not() {
    let mut kinds = BTreeSet::new();
    for case in cases::all() {
        for way in WAYS {
            if let Some(flow) = plain(&case.frame(way)) {
                kinds.insert((flow.udp, flow.v6, case.expected(way).is_none()));
            }
        }
    }
    assert_eq!(kinds.len(), 8, "{kinds:?}");
}

#[test]
fn cases_have_names_of_their_own() {
    let mut seen = BTreeSet::new();
    for case in cases::all() {
        assert!(seen.insert(case.name), "{} is there twice", case.name);
    }
}

/// Frames without an owner, and those with a borrowed MAC, never reach the verdict: those reasons are the programs' alone.
#[test]
fn the_table_reaches_every_reason_of_the_verdict() {
    let reached: BTreeSet<_> =
        cases::all().iter().flat_map(|case| [case.egress, case.ingress]).flatten().collect();
    let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !reached.contains(reason)).collect();
    assert_eq!(missing, [&DropReason::UnknownSource, &DropReason::SourceMac]);
}

#[test]
fn a_tag_beside_the_frame_is_a_tag() {
    let (pod, zone) = Setup::Dual.world();
    for case in cases::all() {
        for way in WAYS {
            let frame = case.frame(way);
            let image = zone.as_ref().map(|zone| Image::new(zone, Layout::Fit));
            let found = verdict(&frame, true, way, &endpoint(&pod), image.as_ref());
            assert_eq!(found, Some(DropReason::Vlan), "{}", case.name);
            assert_eq!(decide(&frame, true, way, &pod, zone.as_ref()), found, "{}", case.name);
        }
    }
}

// ---- Random worlds. Addresses come from small pools, or nothing would ever match.

fn addresses4() -> Vec<Ipv4Addr> {
    let mut pool = vec![
        model::POD4,
        model::POD4_SECOND,
        model::NEAR4,
        model::DENIED4,
        model::FAR4,
        model::GATEWAY4,
        model::ONE_WAY4,
    ];
    pool.extend(
        ["172.16.5.9", "10.12.35.1", "224.0.0.22", "224.0.1.1", "239.1.1.1"]
            .map(|a| a.parse::<Ipv4Addr>().expect("v4")),
    );
    pool
}

fn addresses6() -> Vec<Ipv6Addr> {
    let mut pool = vec![
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
    pool.extend(
        ["fd00:5::9", "ff02::1:ff00:77", "ff05::1:3", "ff0e::1", "febf::1"]
            .map(|a| a.parse::<Ipv6Addr>().expect("v6")),
    );
    pool
}

fn pods() -> impl Strategy<Value = Pod> {
    let v4 = vec(select(addresses4()), 0..=4);
    let v6 = vec(select(addresses6()), 0..=4);
    let gateways = (proptest::option::of(select(addresses4())), proptest::option::of(select(addresses6())));
    (v4, v6, select(addresses6()), gateways, any::<bool>()).prop_map(
        |(v4, v6, link_local, (gateway4, gateway6), dhcp)| Pod {
            v4,
            v6,
            link_local,
            gateway4,
            gateway6,
            dhcp,
        },
    )
}

fn rules() -> impl Strategy<Value = Rule> {
    let v4 = (select(addresses4()), 0..=32u8).prop_map(|(address, length)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        (IpAddr::from(Ipv4Addr::from(u32::from(address) & mask)), length)
    });
    let v6 = (select(addresses6()), 0..=128u8).prop_map(|(address, length)| {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        (IpAddr::from(Ipv6Addr::from(u128::from(address) & mask)), length)
    });
    let ports = prop_oneof![2 => Just(Vec::new()), 1 => vec(ranges(), 1..=8)];
    (prop_oneof![v4, v6], any::<bool>(), any::<bool>(), ports)
        .prop_map(|((net, length), egress, ingress, ports)| Rule { net, length, egress, ingress, ports })
}

/// Around the ports of the table's frames.
fn ranges() -> impl Strategy<Value = Range> {
    let port = || select(vec![0u16, 1, 2, 21, 22, 23, 53, 442, 443, 444, 1000, 2000, 3868, 40_000, u16::MAX]);
    (select(vec![1u8, 2, 6, 17, 58, 132]), port(), port(), any::<bool>(), any::<bool>()).prop_map(
        |(protocol, a, b, egress, ingress)| {
            let (first, last) = match protocol {
                6 | 17 | 132 => (a.min(b), a.max(b)),
                // What has no ports is named as a whole.
                _ => (0, u16::MAX),
            };
            Range { protocol, first, last, egress, ingress }
        },
    )
}

/// From none to more than fit inline.
fn zones() -> impl Strategy<Value = Zone> {
    (vec(rules(), 0..24), proptest::bool::weighted(0.1)).prop_map(|(rules, any)| {
        let mut zone = Zone::of(rules, any);
        let with_ports = zone.rules.iter_mut().filter(|rule| !rule.ports.is_empty());
        with_ports.skip(ZONE_PORT_SETS as usize).for_each(|rule| rule.ports.clear());
        zone
    })
}

/// Bytes that mean something somewhere.
fn telling_bytes() -> impl Strategy<Value = u8> {
    prop_oneof![
        select(vec![
            0u8, 1, 2, 3, 4, 5, 6, 8, 11, 12, 17, 20, 24, 32, 40, 43, 44, 48, 51, 56, 58, 59, 60, 67, 68,
            0x44, 0x45, 0x46, 0x60, 0x94, 130, 133, 134, 135, 136, 137, 143, 0xdd, 0xfe, 0x80, 0xff,
        ]),
        any::<u8>(),
    ]
}

#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Cut(usize),
    Pad(Vec<u8>),
    Source4(Ipv4Addr),
    Destination4(Ipv4Addr),
    Source6(Ipv6Addr),
    Destination6(Ipv6Addr),
    Copy(usize, usize, usize),
}

fn mutations() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        6 => (6usize..130, telling_bytes()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => (14usize..130).prop_map(Mutation::Cut),
        1 => vec(telling_bytes(), 1..60).prop_map(Mutation::Pad),
        1 => select(addresses4()).prop_map(Mutation::Source4),
        1 => select(addresses4()).prop_map(Mutation::Destination4),
        1 => select(addresses6()).prop_map(Mutation::Source6),
        1 => select(addresses6()).prop_map(Mutation::Destination6),
        1 => (14usize..100, 14usize..100, 1usize..40).prop_map(|(from, to, n)| Mutation::Copy(from, to, n)),
    ]
}

fn mutate(frame: &mut Vec<u8>, mutation: Mutation) {
    let copied = match mutation {
        Mutation::Copy(from, _, n) => frame.get(from..from + n).map(<[u8]>::to_vec).unwrap_or_default(),
        _ => vec![],
    };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    match mutation {
        Mutation::Set(at, byte) => put(at, &[byte]),
        Mutation::Source4(address) => put(26, &address.octets()),
        Mutation::Destination4(address) => put(30, &address.octets()),
        Mutation::Source6(address) => put(22, &address.octets()),
        Mutation::Destination6(address) => put(38, &address.octets()),
        Mutation::Cut(length) => frame.truncate(length),
        Mutation::Pad(bytes) => frame.extend(bytes),
        Mutation::Copy(_, to, _) => put(to, &copied),
    }
}

fn mutated_frames() -> impl Strategy<Value = Vec<u8>> {
    // What the mutations are about lies in the first 130 bytes; a giant would only be slow.
    let table: Vec<_> = cases::all().into_iter().filter(cases::Case::is_small).collect();
    (select(table), vec(mutations(), 0..6)).prop_map(|(case, mutations)| {
        let mut frame = case.frame(Way::Egress);
        for mutation in mutations {
            mutate(&mut frame, mutation);
        }
        frame
    })
}

fn random_frames() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop_oneof![
        4 => Just(frames::IPV4), 4 => Just(frames::IPV6), 2 => Just(frames::ARP), 1 => any::<u16>(),
    ];
    (ethertype, vec(telling_bytes(), 0..180)).prop_map(|(ethertype, body)| frames::ethernet(ethertype, &body))
}

fn agree(frame: &[u8], tagged: bool, pod: &Pod, zone: Option<&Zone>) -> Result<(), TestCaseError> {
    for way in WAYS {
        let frame = match way {
            Way::Egress => frame.to_vec(),
            Way::Ingress => frames::between(frame, frames::PEER_MAC, POD_MAC),
        };
        let expected = decide(&frame, tagged, way, pod, zone);
        for layout in [Layout::Fit, Layout::Tries] {
            let image = zone.map(|zone| Image::new(zone, layout));
            let found = verdict(&frame, tagged, way, &endpoint(pod), image.as_ref());
            prop_assert_eq!(found, expected, "{:?} {:?}", way, layout);
        }
    }
    Ok(())
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    // A failure is kept as a case of the table, not in a file of seeds.
    ProptestConfig { cases: 24 * default.cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn mutated_frames_in_the_table_s_worlds(frame in mutated_frames(), setup in select(&Setup::ALL[..])) {
        let (pod, zone) = setup.world();
        agree(&frame, false, &pod, zone.as_ref())?;
    }

    #[test]
    fn mutated_frames_in_random_worlds(
        frame in mutated_frames(),
        tagged in proptest::bool::weighted(0.02),
        pod in pods(),
        zone in proptest::option::weighted(0.95, zones()),
    ) {
        agree(&frame, tagged, &pod, zone.as_ref())?;
    }

    #[test]
    fn random_frames_in_random_worlds(
        frame in random_frames(),
        pod in pods(),
        zone in proptest::option::weighted(0.95, zones()),
    ) {
        agree(&frame, false, &pod, zone.as_ref())?;
    }
}
