//! A drop event in one line for people.

use std::net::{IpAddr, SocketAddr};

use super::event::{mac_text, number};
use super::{Direction, Event, Group, Report};

impl Event {
    /// `net-pod/net1 → 8.8.8.8: TCP 10.12.34.200:40000 to 8.8.8.8:443, 74 bytes, dropped, zone-deny: …`.
    ///
    /// `name` knows attachments by endpoint id and generation; it says `None` where the row is gone or
    /// somebody else's by now.
    pub fn line(&self, name: impl Fn(u32, u32) -> Option<String>) -> String {
        let own = match (self.endpoint, name(self.endpoint, self.generation)) {
            (0, _) => format!("nobody's {}", mac_text(self.own_mac())),
            (_, Some(name)) => name,
            (id, None) => format!("endpoint {id} ({}, gone)", mac_text(self.own_mac())),
        };
        let (left, right) = match self.direction {
            Direction::Tx => (own, place(self.destination, self.destination_mac)),
            Direction::Rx => (place(self.source, self.source_mac), own),
        };
        let what = self.what();
        let from = end(self.source, self.port(self.source_port), self.source_mac);
        let to = end(self.destination, self.port(self.destination_port), self.destination_mac);
        let fate = if self.audited { "passed by audit" } else { "dropped" };
        let (length, reason, sentence) = (self.length, self.reason, self.reason.sentence());
        format!("{left} → {right}: {what} {from} to {to}, {length} bytes, {fate}, {reason}: {sentence}")
    }

    fn own_mac(&self) -> [u8; 6] {
        match self.direction {
            Direction::Tx => self.source_mac,
            Direction::Rx => self.destination_mac,
        }
    }

    fn what(&self) -> String {
        match (self.ethertype, self.protocol) {
            (number::ARP, _) => "ARP".to_owned(),
            (number::IPV4 | number::IPV6, _) if self.is_icmp() => {
                let version = if self.ethertype == number::IPV6 { "v6" } else { "" };
                format!("ICMP{version} type {} code {}", self.source_port, self.destination_port)
            }
            (number::IPV4 | number::IPV6, 6) => "TCP".to_owned(),
            (number::IPV4 | number::IPV6, 17) => "UDP".to_owned(),
            (number::IPV4, 2) => "IGMP".to_owned(),
            (number::IPV4, protocol) => format!("IPv4 protocol {protocol}"),
            (number::IPV6, protocol) => format!("IPv6 next header {protocol}"),
            // Below 1536 the field is the length of an LLC frame: spanning tree and the like.
            (0..1536, _) => "LLC".to_owned(),
            (ethertype, _) => format!("ethertype {ethertype:#06x}"),
        }
    }

    fn port(&self, port: u16) -> Option<u16> {
        (port != 0 && !self.is_icmp()).then_some(port)
    }
}

impl Group {
    /// The line of the group's first event, and how often there was one like it.
    pub fn line(&self, name: impl Fn(u32, u32) -> Option<String>) -> String {
        let line = self.first.line(name);
        if self.count == 1 { line } else { format!("{line} ({} times)", self.count) }
    }
}

impl Report {
    /// A line for each group, and one for what was withheld.
    pub fn lines(&self, name: impl Fn(u32, u32) -> Option<String>) -> Vec<String> {
        let mut lines: Vec<_> = self.groups.iter().map(|group| group.line(&name)).collect();
        if self.withheld != 0 {
            let (withheld, s) = (self.withheld, if self.withheld == 1 { "" } else { "s" });
            lines.push(format!("… and {withheld} more event{s} of other kinds"));
        }
        lines
    }
}

/// Where a packet was going or coming from, without its port.
fn place(address: Option<IpAddr>, mac: [u8; 6]) -> String {
    address.map_or_else(|| mac_text(mac), |address| address.to_string())
}

fn end(address: Option<IpAddr>, port: Option<u16>, mac: [u8; 6]) -> String {
    match (address, port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (address, _) => place(address, mac),
    }
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::drop_reason::DropReason;

    use super::super::Reason;
    use super::super::event::tests::syn;
    use super::*;

    fn name(id: u32, generation: u32) -> Option<String> {
        ((id, generation) == (7, 3)).then(|| "net-pod/net1".to_owned())
    }

    #[track_caller]
    fn check(event: Event, expected: &str) {
        assert_eq!(event.line(name), format!("{expected}: {}", event.reason.sentence()));
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("address"))
    }

    #[test]
    fn lines_for_people() {
        let syn = syn();
        check(
            syn,
            "net-pod/net1 → 8.8.8.8: TCP 10.12.34.200:40000 to 8.8.8.8:443, 74 bytes, dropped, zone-deny",
        );
        check(
            Event {
                direction: Direction::Rx,
                protocol: 17,
                source: syn.destination,
                destination: syn.source,
                ..syn
            },
            "8.8.8.8 → net-pod/net1: UDP 8.8.8.8:40000 to 10.12.34.200:443, 74 bytes, dropped, zone-deny",
        );
        check(
            Event { audited: true, protocol: 1, source_port: 8, destination_port: 0, ..syn },
            "net-pod/net1 → 8.8.8.8: ICMP type 8 code 0 10.12.34.200 to 8.8.8.8, 74 bytes, passed by audit, zone-deny",
        );
        let arp = Event {
            ethertype: number::ARP,
            protocol: 0,
            source_port: 0,
            destination_port: 0,
            length: 42,
            ..syn
        };
        check(arp, "net-pod/net1 → 8.8.8.8: ARP 10.12.34.200 to 8.8.8.8, 42 bytes, dropped, zone-deny");
        check(
            Event { ethertype: number::IPV6, source: ip("fd00::1"), destination: ip("fd00::2"), ..syn },
            "net-pod/net1 → fd00::2: TCP [fd00::1]:40000 to [fd00::2]:443, 74 bytes, dropped, zone-deny",
        );
        let lldp = Event {
            ethertype: 0x88cc,
            source: None,
            destination: None,
            reason: Reason::Known(DropReason::Ethertype),
            ..arp
        };
        check(
            lldp,
            "net-pod/net1 → 02:00:00:00:00:0b: ethertype 0x88cc 02:00:00:00:00:0a to 02:00:00:00:00:0b, 42 bytes, \
             dropped, ethertype",
        );
        check(
            Event { ethertype: 38, ..lldp },
            "net-pod/net1 → 02:00:00:00:00:0b: LLC 02:00:00:00:00:0a to 02:00:00:00:00:0b, 42 bytes, dropped, ethertype",
        );
    }

    #[test]
    fn who_has_no_name_is_still_named() {
        check(
            Event { generation: 2, ..syn() },
            "endpoint 7 (02:00:00:00:00:0a, gone) → 8.8.8.8: TCP 10.12.34.200:40000 to 8.8.8.8:443, 74 bytes, dropped, \
             zone-deny",
        );
        check(
            Event { endpoint: 0, generation: 0, reason: Reason::Known(DropReason::UnknownSource), ..syn() },
            "nobody's 02:00:00:00:00:0a → 8.8.8.8: TCP 10.12.34.200:40000 to 8.8.8.8:443, 74 bytes, dropped, \
             unknown-source",
        );
        check(
            Event { reason: Reason::Newer(77), ..syn() },
            "net-pod/net1 → 8.8.8.8: TCP 10.12.34.200:40000 to 8.8.8.8:443, 74 bytes, dropped, reason-77",
        );
    }

    #[test]
    fn a_report_says_what_it_withholds() {
        let once = Group { first: syn(), count: 1 };
        let often = Group { first: syn(), count: 37 };
        let line = syn().line(name);
        let report = Report { groups: vec![once, often], withheld: 12 };
        let expected =
            [line.clone(), format!("{line} (37 times)"), "… and 12 more events of other kinds".to_owned()];
        assert_eq!(report.lines(name), expected);
        let report = Report { groups: vec![], withheld: 1 };
        assert_eq!(report.lines(name), ["… and 1 more event of other kinds"]);
        let report = Report { groups: vec![once], withheld: 0 };
        assert_eq!(report.lines(name), [line]);
    }
}
