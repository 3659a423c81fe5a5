//! From the bytes of the ring buffer to an event, and on to JSON.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr};

use netpath_ebpf::abi::{DropEvent, direction};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

/// Size of an event in the ring buffer.
const LEN: usize = size_of::<DropEvent>();

/// Ethertypes and protocols that events are read by.
pub(super) mod number {
    pub(in super::super) const IPV4: u16 = 0x0800;
    pub(in super::super) const ARP: u16 = 0x0806;
    pub(in super::super) const IPV6: u16 = 0x86dd;
    pub(in super::super) const ICMP: u8 = 1;
    pub(in super::super) const ICMPV6: u8 = 58;
}

/// Why bytes from the ring buffer are not an event: they are of another ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Events have one length in an ABI.
    #[error("a drop event has {LEN} bytes, and this one {0}")]
    Length(usize),
    /// Neither sent nor received.
    #[error("a drop event is of direction 0 or 1, and this one of {0}")]
    Direction(u8),
}

/// Which way a packet went, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The endpoint sent it.
    Tx,
    /// It was for the endpoint.
    Rx,
}

impl Direction {
    /// The stable name: in JSON and in metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Rx => "rx",
        }
    }
}

/// Why a packet was dropped, as far as this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A reason of this version.
    Known(DropReason),
    /// The number of a reason that a newer program has.
    Newer(u8),
}

impl Reason {
    /// The label of all that are not known.
    pub const NEWER: &str = "newer";

    /// The reason with this number.
    pub const fn from_number(number: u8) -> Self {
        match DropReason::from_number(number) {
            Some(reason) => Self::Known(reason),
            None => Self::Newer(number),
        }
    }

    /// Its number in the ABI.
    pub const fn number(self) -> u8 {
        match self {
            Self::Known(reason) => reason as u8,
            Self::Newer(number) => number,
        }
    }

    /// The stable label, where there can be no more than so many: all that are not known have one.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Known(reason) => reason.label(),
            Self::Newer(_) => Self::NEWER,
        }
    }

    /// One sentence for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Known(reason) => reason.sentence(),
            Self::Newer(_) => {
                "The program on the master is newer than this one, which does not know the reason."
            }
        }
    }
}

/// The stable label, or `reason-N` for one that is not known.
impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Self::Known(reason) => f.write_str(reason.label()),
            Self::Newer(number) => write!(f, "reason-{number}"),
        }
    }
}

/// One packet that was dropped, or would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Endpoint id; 0 = nobody's frame.
    pub endpoint: u32,
    /// Generation of the endpoint's row: where that has another one, the event is of a predecessor.
    pub generation: u32,
    /// Dense id of the master.
    pub master: u16,
    /// Why.
    pub reason: Reason,
    /// Which way it went.
    pub direction: Direction,
    /// Only audited: the packet passed.
    pub audited: bool,
    /// Ethertype behind any VLAN tag; below 1536 it is a length.
    pub ethertype: u16,
    /// IP protocol or last next-header value; 0 for ARP and what is not IP.
    pub protocol: u8,
    /// Source address; of an ARP frame the sender's.
    pub source: Option<IpAddr>,
    /// Destination address; of an ARP frame or a neighbour solicitation the target.
    pub destination: Option<IpAddr>,
    /// Source port, or ICMP type; 0 where there is none.
    pub source_port: u16,
    /// Destination port, or ICMP code; 0 where there is none.
    pub destination_port: u16,
    /// Frame length in bytes.
    pub length: u32,
    /// Source MAC.
    pub source_mac: [u8; 6],
    /// Destination MAC.
    pub destination_mac: [u8; 6],
    /// Where the zone denied it: the number of the rule that did, as `netpath zones -o json` has it.
    pub rule: u8,
}

impl Event {
    /// Reads one record of the ring buffer `events`.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let record: &[u8; LEN] = record.try_into().map_err(|_| DecodeError::Length(record.len()))?;
        let ethertype = u16::from_ne_bytes(field(record, offset_of!(DropEvent, ethertype)));
        let source = field(record, offset_of!(DropEvent, source));
        let destination = address(field(record, offset_of!(DropEvent, destination)));
        let [direction] = field(record, offset_of!(DropEvent, direction));
        let [reason] = field(record, offset_of!(DropEvent, reason));
        let [audited] = field(record, offset_of!(DropEvent, audited));
        let [protocol] = field(record, offset_of!(DropEvent, protocol));
        Ok(Self {
            endpoint: u32::from_ne_bytes(field(record, offset_of!(DropEvent, endpoint))),
            generation: u32::from_ne_bytes(field(record, offset_of!(DropEvent, generation))),
            master: u16::from_ne_bytes(field(record, offset_of!(DropEvent, master))),
            reason: Reason::from_number(reason),
            direction: match direction {
                direction::TX => Direction::Tx,
                direction::RX => Direction::Rx,
                other => return Err(DecodeError::Direction(other)),
            },
            audited: audited != 0,
            ethertype,
            protocol,
            // All zero is "none", but also `::`, the source of somebody who has no address yet.
            source: match address(source) {
                None if ethertype == number::IPV6 && destination.is_some() => {
                    Some(Ipv6Addr::UNSPECIFIED.into())
                }
                source => source,
            },
            destination,
            source_port: u16::from_ne_bytes(field(record, offset_of!(DropEvent, source_port))),
            destination_port: u16::from_ne_bytes(field(record, offset_of!(DropEvent, destination_port))),
            length: u32::from_ne_bytes(field(record, offset_of!(DropEvent, length))),
            source_mac: field(record, offset_of!(DropEvent, source_mac)),
            destination_mac: field(record, offset_of!(DropEvent, destination_mac)),
            rule: u8::from_ne_bytes(field(record, offset_of!(DropEvent, rule))),
        })
    }

    /// The event for programs; `name` is the attachment's, where it is known. What a packet does not have
    /// is `null`.
    pub fn to_json(&self, name: Option<&str>) -> Value {
        let icmp = self.is_icmp();
        let port = |port: u16| (!icmp && port != 0).then_some(port);
        let icmp = |value: u16| icmp.then_some(value);
        json!({
            "attachment": name,
            "endpoint": self.endpoint,
            "generation": self.generation,
            "master": self.master,
            "direction": self.direction.label(),
            "audited": self.audited,
            "reason": self.reason.to_string(),
            "reason_number": self.reason.number(),
            "ethertype": self.ethertype,
            "protocol": self.is_ip().then_some(self.protocol),
            "source": self.source,
            "destination": self.destination,
            "source_port": port(self.source_port),
            "destination_port": port(self.destination_port),
            "icmp_type": icmp(self.source_port),
            "icmp_code": icmp(self.destination_port),
            "length": self.length,
            "source_mac": mac_text(self.source_mac),
            "destination_mac": mac_text(self.destination_mac),
            "rule": (self.reason == Reason::Known(DropReason::ZoneDeny)).then_some(self.rule),
        })
    }

    pub(super) fn is_ip(&self) -> bool {
        matches!(self.ethertype, number::IPV4 | number::IPV6)
    }

    pub(super) fn is_icmp(&self) -> bool {
        match self.ethertype {
            number::IPV4 => self.protocol == number::ICMP,
            number::IPV6 => self.protocol == number::ICMPV6,
            _ => false,
        }
    }
}

/// The bytes of one field. `at` and `N` are of a field of [`DropEvent`], so that they lie in the record.
fn field<const N: usize>(record: &[u8; LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&record[at..at + N]);
    bytes
}

fn address(bytes: [u8; 16]) -> Option<IpAddr> {
    let v6 = Ipv6Addr::from(bytes);
    match v6.to_ipv4_mapped() {
        Some(v4) => Some(v4.into()),
        None if v6.is_unspecified() => None,
        None => Some(v6.into()),
    }
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN of the lab's pod to the internet.
    pub(in super::super) fn syn() -> Event {
        Event {
            endpoint: 7,
            generation: 3,
            master: 1,
            reason: Reason::Known(DropReason::ZoneDeny),
            direction: Direction::Tx,
            audited: false,
            ethertype: number::IPV4,
            protocol: 6,
            source: Some("10.12.34.200".parse().expect("address")),
            destination: Some("8.8.8.8".parse().expect("address")),
            source_port: 40_000,
            destination_port: 443,
            length: 74,
            source_mac: [2, 0, 0, 0, 0, 0x0a],
            destination_mac: [2, 0, 0, 0, 0, 0x0b],
            rule: 2,
        }
    }

    /// The same as a program would write it, field by field by the documented layout.
    fn record(event: &Event) -> Vec<u8> {
        let address = |address: Option<IpAddr>| match address {
            None => [0; 16],
            Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
            Some(IpAddr::V6(v6)) => v6.octets(),
        };
        [
            &event.endpoint.to_ne_bytes()[..],
            &event.generation.to_ne_bytes(),
            &event.master.to_ne_bytes(),
            &event.ethertype.to_ne_bytes(),
            &[event.reason.number(), event.direction as u8, event.audited.into(), event.protocol],
            &address(event.source),
            &address(event.destination),
            &event.source_port.to_ne_bytes(),
            &event.destination_port.to_ne_bytes(),
            &event.length.to_ne_bytes(),
            &event.source_mac,
            &event.destination_mac,
            &[event.rule, 0, 0, 0],
        ]
        .concat()
    }

    #[test]
    fn an_event_is_read_from_its_bytes() {
        assert_eq!(Event::decode(&record(&syn())), Ok(syn()));
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let mut bytes = record(&syn());
        assert_eq!(Event::decode(&bytes[1..]), Err(DecodeError::Length(71)));
        assert_eq!(Event::decode(&[]), Err(DecodeError::Length(0)));
        bytes[13] = 2;
        assert_eq!(Event::decode(&bytes), Err(DecodeError::Direction(2)));
    }

    #[test]
    fn every_reason_is_accepted() {
        for number in 0..=u8::MAX {
            let mut bytes = record(&syn());
            bytes[12] = number;
            let reason = Event::decode(&bytes).expect("any number").reason;
            assert_eq!(reason.number(), number);
            assert!(!reason.sentence().is_empty());
            match DropReason::from_number(number) {
                Some(known) => assert_eq!(reason.to_string(), known.label()),
                None => assert_eq!(reason.to_string(), format!("reason-{number}")),
            }
        }
    }

    #[test]
    fn no_address_is_none_and_unspecified_is_one() {
        let source = |ethertype, destination: Option<&str>| {
            let destination = destination.map(|text| text.parse().expect("address"));
            let event = Event { ethertype, source: None, destination, ..syn() };
            Event::decode(&record(&event)).expect("event").source
        };
        assert_eq!(source(0x88cc, None), None);
        assert_eq!(source(number::IPV6, None), None);
        assert_eq!(source(number::IPV6, Some("ff02::1")), Some(Ipv6Addr::UNSPECIFIED.into()));
        let dhcp = Event { source: Some("0.0.0.0".parse().expect("address")), ..syn() };
        assert_eq!(Event::decode(&record(&dhcp)), Ok(dhcp));
    }

    #[test]
    fn json_for_programs() {
        let expected = json!({
            "attachment": "net-pod/net1", "endpoint": 7, "generation": 3, "master": 1, "direction": "tx",
            "audited": false, "reason": "zone-deny", "reason_number": 14, "ethertype": 2048, "protocol": 6,
            "source": "10.12.34.200", "destination": "8.8.8.8", "source_port": 40000, "destination_port": 443,
            "icmp_type": null, "icmp_code": null, "length": 74, "source_mac": "02:00:00:00:00:0a",
            "destination_mac": "02:00:00:00:00:0b", "rule": 2,
        });
        assert_eq!(syn().to_json(Some("net-pod/net1")), expected);
        let ping =
            Event { protocol: number::ICMP, source_port: 8, destination_port: 0, ..syn() }.to_json(None);
        assert_eq!((&ping["icmp_type"], &ping["icmp_code"]), (&json!(8), &json!(0)));
        assert_eq!((&ping["source_port"], &ping["destination_port"]), (&json!(null), &json!(null)));
        let arp = Event { ethertype: number::ARP, protocol: 0, source_port: 0, destination_port: 0, ..syn() };
        assert_eq!(arp.to_json(None)["protocol"], json!(null));
        let other = Event { reason: Reason::Known(DropReason::Malformed), ..syn() };
        assert_eq!(other.to_json(None)["rule"], json!(null));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_event_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            match Event::decode(&bytes) {
                Ok(event) => {
                    prop_assert_eq!(bytes.len(), LEN);
                    // What is read says everything but the padding and whether `audited` was 1 or more.
                    let again = record(&event);
                    prop_assert_eq!(&again[..14], &bytes[..14]);
                    prop_assert_eq!(&again[15..LEN - 3], &bytes[15..LEN - 3]);
                }
                Err(DecodeError::Length(length)) => prop_assert!(length == bytes.len() && length != LEN),
                Err(DecodeError::Direction(direction)) => prop_assert!(1 < direction && bytes.len() == LEN),
            }
        }

        #[test]
        fn any_event_has_a_line(mut bytes in prop::collection::vec(any::<u8>(), LEN), direction in 0..2_u8) {
            bytes[13] = direction;
            let event = Event::decode(&bytes).expect("right length and direction");
            let line = event.line(|_, _| Some("ns/pod/net1".to_owned()));
            prop_assert!(line.contains(&event.reason.to_string()) && !line.contains('\n'));
        }
    }
}
