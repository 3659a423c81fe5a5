//! Frames that a program which "reads IP and passes the rest" would let through.

use netpath_ebpf::drop_reason::DropReason::{
    Ethertype, ExtensionHeader, IpOptions, Malformed, SourceV4, Vlan, ZoneDeny,
};

use crate::arena::{A, A6, Arena, Fate, HONEST, Way, Who, attempt, both_hooks, runt, strict};
use crate::common::node::{GATEWAY, GATEWAY6, INTERNET, INTERNET6, OUTSIDE_MAC};
use crate::common::wire::{ethernet, ethertype, ipv4, ipv6, marker, protocol, udp};

/// Ethertypes of tags: 802.1Q, 802.1ad and the old QinQ.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

#[test]
fn row_05_vlan_tags_do_not_leave_inline_whatever_they_hide() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        // What is behind the tag is what the pod may send.
        let inner = |mark: &[u8]| ipv4(A, GATEWAY, protocol::UDP, &udp(1, 2, mark));
        let tagged =
            |tags: &[u8], mark: &[u8]| [&OUTSIDE_MAC[..], &arena.a.mac, tags, &[8, 0], &inner(mark)].concat();
        let mut table = vec![
            attempt("no tag", HONEST, |mark| arena.frame(ethertype::IPV4, &inner(mark))),
            attempt("a priority tag", Vlan, |mark| tagged(&[0x81, 0, 0xe0, 0], mark)),
            attempt("two tags", Vlan, |mark| tagged(&[0x88, 0xa8, 0, 200, 0x81, 0, 0, 100], mark)),
            attempt("three tags", Vlan, |mark| tagged(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3], mark)),
            runt("a tag and nothing in it", Vlan, arena.frame(ethertype::VLAN, &[0, 100, 8, 0, 0x45])),
            runt("half a tag", Vlan, arena.frame(ethertype::VLAN, &[0])),
        ];
        table.extend(TAGS.map(|tag| {
            let tag = tag.to_be_bytes();
            attempt("one tag", Vlan, |mark| tagged(&[tag[0], tag[1], 0, 100], mark))
        }));
        arena.table(table);
    }
}

#[test]
fn row_05_a_tag_in_the_packets_metadata_is_seen_as_well() {
    // At TC ingress the kernel has moved the outer tag there; XDP sees it inline.
    for xdp in ["off", "native"] {
        let arena = Arena::new(&serde_json::json!({ "unknownSource": "drop", "xdp": xdp }));
        let tagged = |way: Way, tags: &[u8], mark: &[u8]| {
            let plain = arena.fence(way, mark);
            [&plain[..12], tags, &plain[12..]].concat()
        };
        for (what, tags) in [
            ("one tag", &[0x81, 0, 0, 100][..]),
            ("two tags", &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 100]),
            ("a priority tag", &[0x81, 0, 0xe0, 0]),
        ] {
            let mark = marker();
            let frame = tagged(Way::In, tags, &mark);
            let refused = Fate::dropped(Who::A, "rx", Vlan);
            assert_eq!(arena.fate(Way::In, &frame, &mark), refused, "xdp {xdp}: {what} from outside");
            let mark = marker();
            let frame = tagged(Way::Sibling, tags, &mark);
            assert_eq!(
                arena.fate(Way::Sibling, &frame, &mark),
                Fate::refused(Vlan),
                "xdp {xdp}: {what} aside"
            );
        }
        for way in [Way::In, Way::Sibling, Way::Out] {
            let mark = marker();
            assert_eq!(
                arena.fate(way, &arena.fence(way, &mark), &mark),
                Fate::passed(),
                "xdp {xdp}: {way:?}"
            );
        }
    }
}

#[test]
fn row_06_what_is_neither_arp_nor_ip_stays_inside() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let a = arena.a.mac;
        let other = |ethertype: u16, head: &[u8], mark: &[u8]| arena.frame(ethertype, &[head, mark].concat());
        let to = |group: u8, ethertype: u16, head: &[u8], mark: &[u8]| {
            ethernet([1, 0x80, 0xc2, 0, 0, group], a, ethertype, &[head, mark].concat())
        };
        let length = |mark: &[u8], head: usize| u16::try_from(mark.len() + head).expect("short");
        let ip = |mark: &[u8]| ipv4(A, GATEWAY, protocol::UDP, &udp(1, 2, mark));
        let snap = [0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
        arena.table(vec![
            attempt("IPv4 as it should be", HONEST, |mark| arena.frame(ethertype::IPV4, &ip(mark))),
            attempt("IPv4 in MPLS", Ethertype, |mark| {
                other(0x8847, &[&[0, 0, 0x11, 0xff], &ip(mark)[..]].concat(), mark)
            }),
            attempt("MPLS multicast", Ethertype, |mark| other(0x8848, &[0, 0, 0x11, 0xff], mark)),
            attempt("IPv4 in LLC and SNAP", Ethertype, |mark| {
                let packet = ip(mark);
                let length = u16::try_from(packet.len() + snap.len()).expect("short");
                arena.frame(length, &[&snap[..], &packet].concat())
            }),
            attempt("the largest length that is no ethertype", Ethertype, |mark| {
                other(1535, &[0xaa; 8], mark)
            }),
            attempt("ethertype 0", Ethertype, |mark| other(0, &[], mark)),
            attempt("IPv4 in PPPoE", Ethertype, |mark| {
                let packet = ip(mark);
                let length = u16::try_from(packet.len() + 2).expect("short").to_be_bytes();
                other(0x8864, &[&[0x11, 0, 0, 1, length[0], length[1], 0, 0x21][..], &packet].concat(), mark)
            }),
            attempt("PPPoE discovery", Ethertype, |mark| other(0x8863, &[0x11, 9, 0, 0, 0, 0], mark)),
            attempt("LLDP", Ethertype, |mark| to(0x0e, 0x88cc, &[2, 7, 4], mark)),
            attempt("spanning tree", Ethertype, |mark| to(0, length(mark, 3), &[0x42, 0x42, 3], mark)),
            attempt("EAPOL", Ethertype, |mark| to(3, 0x888e, &[1, 1, 0, 0], mark)),
            attempt("pause", Ethertype, |mark| to(1, 0x8808, &[0, 1, 0xff, 0xff], mark)),
            attempt("LACP", Ethertype, |mark| to(2, 0x8809, &[1, 1], mark)),
            attempt("MACsec", Ethertype, |mark| other(0x88e5, &[0; 8], mark)),
            attempt("RARP", Ethertype, |mark| other(0x8035, &[0; 28], mark)),
            attempt("Wake-on-LAN", Ethertype, |mark| other(0x0842, &[0xff; 6], mark)),
            attempt("HSR", Ethertype, |mark| other(0x892f, &[0; 6], mark)),
            attempt("an ethertype for experiments", Ethertype, |mark| other(0x88b5, &[], mark)),
            // IP to the bridges' group is no way around: what decides is what it is, and who it is for.
            attempt("IPv4 to the group of bridges, outside", ZoneDeny, |mark| {
                to(0, ethertype::IPV4, &ipv4(A, INTERNET, protocol::UDP, &udp(1, 2, mark)), &[])
            }),
        ]);
    }
}

#[test]
fn row_07_what_is_cut_off_is_malformed() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let whole = arena.udp(GATEWAY, &[]);
        let whole6 = arena.udp6(GATEWAY6, &[]);
        let mut table = vec![attempt("the whole", HONEST, |mark| arena.udp(GATEWAY, mark))];
        for length in [14, 15, 20, 33, 34, 41] {
            table.push(runt("IPv4 that ends early", Malformed, whole[..length].to_vec()));
        }
        for length in [14, 15, 53, 54, 61] {
            table.push(runt("IPv6 that ends early", Malformed, whole6[..length].to_vec()));
        }
        for length in [0, 1, 27] {
            table.push(runt(
                "ARP that ends early",
                Malformed,
                arena.frame(ethertype::ARP, &[1; 28][..length]),
            ));
        }
        table.push(runt("15 bytes of something", Ethertype, arena.frame(0x88b5, &[7])));
        arena.table(table);
    }
}

#[test]
fn row_07_the_kernel_sends_nothing_shorter_than_ethernet_so_the_programs_never_see_one() {
    let arena = Arena::new(&strict());
    let (inside, outside) = arena.ends(Way::Out);
    // Of passes nothing is said: pods and the host report their groups whenever they like.
    let dropped = || {
        let totals = arena.node.totals();
        (arena.node.drops(&arena.a), totals.host_dropped, totals.unknown_dropped, totals.unknown_passed)
    };
    let before = dropped();
    let frame = arena.frame(ethertype::IPV4, &[]);
    for length in 1..14 {
        for socket in [&inside, &outside] {
            let refused = socket.send(&frame[..length]).expect_err("not even a header");
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{length} bytes");
        }
    }
    assert_eq!(dropped(), before);
    inside.send(&arena.fence(Way::Out, &marker())).expect("a whole one is sent");
}

#[test]
fn row_08_ipv4_headers_that_lie_and_source_routes() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let with = |at: usize, value: u8, mark: &[u8]| {
            let mut frame = arena.udp(GATEWAY, mark);
            frame[14 + at] = value;
            frame
        };
        // Four bytes at a time: options of an IPv4 header, in front of UDP.
        let options = |options: &[u8], mark: &[u8]| {
            let mut packet = ipv4(A, GATEWAY, protocol::UDP, &[options, &udp(1, 2, mark)].concat());
            packet[0] = 0x45 + u8::try_from(options.len() / 4).expect("few");
            arena.frame(ethertype::IPV4, &packet)
        };
        arena.table(vec![
            attempt("an honest header", HONEST, |mark| arena.udp(GATEWAY, mark)),
            attempt("version 6", Malformed, |mark| with(0, 0x65, mark)),
            attempt("version 0", Malformed, |mark| with(0, 0x05, mark)),
            attempt("a header of 16 bytes", Malformed, |mark| with(0, 0x44, mark)),
            attempt("a header of no bytes", Malformed, |mark| with(0, 0x40, mark)),
            attempt("a header longer than the packet says", Malformed, |mark| {
                let mut frame = with(0, 0x4f, mark);
                frame[16..18].copy_from_slice(&[0, 40]);
                frame
            }),
            attempt("a total length of nothing", Malformed, |mark| {
                let mut frame = arena.udp(GATEWAY, mark);
                frame[16..18].fill(0);
                frame
            }),
            attempt("a total length below the header's", Malformed, |mark| {
                let mut frame = arena.udp(GATEWAY, mark);
                frame[16..18].copy_from_slice(&[0, 19]);
                frame
            }),
            attempt("a total length beyond the frame", Malformed, |mark| with(2, 0xff, mark)),
            attempt("a total length without the transport header", Malformed, |mark| {
                let mut frame = arena.udp(GATEWAY, mark);
                frame[16..18].copy_from_slice(&[0, 24]);
                frame
            }),
            attempt("padding behind the packet", HONEST, |mark| {
                [&arena.udp(GATEWAY, &[])[..], mark].concat()
            }),
            attempt("strict source route", IpOptions, |mark| options(&[0x89, 7, 4, 8, 8, 8, 8, 0], mark)),
            attempt("loose source route", IpOptions, |mark| options(&[0x83, 7, 4, 8, 8, 8, 8, 0], mark)),
            attempt("record route", IpOptions, |mark| options(&[7, 7, 4, 0, 0, 0, 0, 0], mark)),
            attempt("timestamps", IpOptions, |mark| options(&[0x44, 8, 5, 0, 0, 0, 0, 0], mark)),
            attempt("options that do nothing", IpOptions, |mark| options(&[1, 1, 1, 0], mark)),
            attempt("Router Alert outside IGMP", IpOptions, |mark| options(&[0x94, 4, 0, 0], mark)),
        ]);
    }
}

#[test]
fn row_09_every_fragment_is_judged_by_its_own_addresses() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let fragment = |source, destination, word: u16, mark: &[u8]| {
            let mut packet = ipv4(source, destination, protocol::UDP, &udp(1000, 2000, mark));
            packet[6..8].copy_from_slice(&word.to_be_bytes());
            arena.frame(ethertype::IPV4, &packet)
        };
        let fragment6 = |destination, word: u16, mark: &[u8]| {
            let word = word.to_be_bytes();
            let head = [protocol::UDP, 0, word[0], word[1], 0, 0, 0, 7];
            arena.v6(destination, FRAGMENT, &[&head[..], &udp(1000, 2000, mark)].concat())
        };
        arena.table(vec![
            attempt("the first", HONEST, |mark| fragment(A, GATEWAY, 0x2000, mark)),
            attempt("a middle one", HONEST, |mark| fragment(A, GATEWAY, 0x2000 | 185, mark)),
            attempt("the last", HONEST, |mark| fragment(A, GATEWAY, 370, mark)),
            attempt("the first to outside", ZoneDeny, |mark| fragment(A, INTERNET, 0x2000, mark)),
            attempt("a middle one to outside", ZoneDeny, |mark| fragment(A, INTERNET, 0x2000 | 185, mark)),
            attempt("the last to outside", ZoneDeny, |mark| fragment(A, INTERNET, 370, mark)),
            attempt("a later one from another address", SourceV4, |mark| {
                fragment(INTERNET, GATEWAY, 370, mark)
            }),
            attempt("a first one without its transport header", Malformed, |mark| {
                let mut packet = ipv4(A, GATEWAY, protocol::UDP, &[0, 1, 0, 2]);
                packet[6] = 0x20;
                [&arena.frame(ethertype::IPV4, &packet)[..], mark].concat()
            }),
            attempt("the first, IPv6", HONEST, |mark| fragment6(GATEWAY6, 1, mark)),
            attempt("the last, IPv6", HONEST, |mark| fragment6(GATEWAY6, 185 << 3, mark)),
            attempt("the first to outside, IPv6", ZoneDeny, |mark| fragment6(INTERNET6, 1, mark)),
            attempt("the last to outside, IPv6", ZoneDeny, |mark| fragment6(INTERNET6, 185 << 3, mark)),
        ]);
    }
}

#[test]
fn row_10_ipv6_extension_headers_hide_neither_the_destination_nor_the_payload() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let send = |destination, first: u8, headers: &[u8], mark: &[u8]| {
            arena.v6(destination, first, &[headers, &udp(1000, 2000, mark)].concat())
        };
        // A header of eight bytes: what comes next, then padding (PadN).
        let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let chain = |length: usize| {
            let mut headers = Vec::new();
            for left in (0..length).rev() {
                headers.extend(header(if left == 0 { protocol::UDP } else { DESTINATION_OPTIONS }));
            }
            headers
        };
        let routing = |kind: u8| {
            let mut header = vec![protocol::UDP, 2, kind, 1, 0, 0, 0, 0];
            header.extend(INTERNET6.octets());
            header
        };
        let bad = ExtensionHeader;
        arena.table(vec![
            attempt("none", HONEST, |mark| arena.udp6(GATEWAY6, mark)),
            attempt("hop-by-hop", HONEST, |mark| send(GATEWAY6, HOP_BY_HOP, &header(protocol::UDP), mark)),
            attempt("destination options", HONEST, |mark| {
                send(GATEWAY6, DESTINATION_OPTIONS, &chain(1), mark)
            }),
            attempt("six of them", HONEST, |mark| send(GATEWAY6, DESTINATION_OPTIONS, &chain(6), mark)),
            attempt("seven of them", bad, |mark| send(GATEWAY6, DESTINATION_OPTIONS, &chain(7), mark)),
            attempt("options on the way outside", ZoneDeny, |mark| {
                send(INTERNET6, DESTINATION_OPTIONS, &chain(1), mark)
            }),
            attempt("routing header 0", bad, |mark| send(GATEWAY6, ROUTING, &routing(0), mark)),
            attempt("routing header 2, mobile", bad, |mark| send(GATEWAY6, ROUTING, &routing(2), mark)),
            attempt("routing header 4, segments", bad, |mark| send(GATEWAY6, ROUTING, &routing(4), mark)),
            attempt("a routing header behind options", bad, |mark| {
                let headers = [&header(ROUTING)[..], &routing(0)].concat();
                send(GATEWAY6, DESTINATION_OPTIONS, &headers, mark)
            }),
            attempt("a header that ends behind the packet", bad, |mark| {
                let mut headers = header(protocol::UDP);
                headers[1] = 0xff;
                send(GATEWAY6, DESTINATION_OPTIONS, &headers, mark)
            }),
            attempt("an authentication header longer than the packet", bad, |mark| {
                send(GATEWAY6, AUTHENTICATION, &[protocol::UDP, 0xff, 0, 0, 0, 0, 0, 1], mark)
            }),
            attempt("a payload length that leaves the transport out", bad, |mark| {
                let mut frame = send(GATEWAY6, DESTINATION_OPTIONS, &chain(1), mark);
                frame[18..20].copy_from_slice(&[0, 12]);
                frame
            }),
            attempt("a payload length beyond the frame", Malformed, |mark| {
                let mut frame = arena.udp6(GATEWAY6, mark);
                frame[18] = 0x7f;
                frame
            }),
            attempt("a jumbo payload of 65,536 bytes that is not there", Malformed, |mark| {
                let jumbo = [protocol::UDP, 0, 0xc2, 4, 0, 1, 0, 0];
                let mut frame = send(GATEWAY6, HOP_BY_HOP, &jumbo, mark);
                frame[18..20].fill(0);
                frame
            }),
            attempt("version 4", Malformed, |mark| {
                let mut packet = ipv6(A6, GATEWAY6, protocol::UDP, &udp(1, 2, mark));
                packet[0] = 0x45;
                arena.frame(ethertype::IPV6, &packet)
            }),
        ]);
    }
}
