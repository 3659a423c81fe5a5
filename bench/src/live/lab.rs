//! Namespaces, wires and pods that live traffic runs in. Everything is made for one run and goes with it.
//!
//! Each peer has a site of its own: a wire (veth) whose near end is the master of one pod, by macvlan in bridge mode. All
//! sites look the same, with the same MACs and addresses: what differs is what polices them. The far ends lie in one
//! namespace, `outside`, where a TC program counts and drops what arrives.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    frames::{Mac, PEER_MAC, pod_mac},
    netns::Namespace,
};

/// The pod's interface in its namespace.
pub(super) const INTERFACE: &str = "net1";
/// The pod's address.
pub(super) const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
/// The pod's network, which its zone allows.
pub(super) const ZONE: &str = "10.12.34.0/24";
/// Who it may talk to, at the far end.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 254);
/// Who it may not talk to, by way of the gateway.
pub(super) const STRANGER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// Port of the pod's one socket.
pub(super) const PORT: u16 = 12_345;

/// The pod's MAC.
pub(super) fn mac() -> Mac {
    pod_mac(0)
}

/// As tools write it.
pub(super) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What the kernel counts of one device.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    /// `/proc/net/dev` of the device's namespace: who holds it open need not be there to read it.
    counts: File,
}

impl Device {
    /// The device `name` of `namespace`.
    pub(super) fn new(namespace: &Namespace, name: &str) -> Result<Self> {
        let counts = namespace.within(|| File::open("/proc/thread-self/net/dev"))??;
        let device = Self { name: name.to_owned(), counts };
        device.received()?;
        Ok(device)
    }

    /// Packets that it has received.
    pub(super) fn received(&self) -> Result<u64> {
        let (mut counts, mut text) = (&self.counts, String::new());
        counts.rewind()?;
        counts.read_to_string(&mut text)?;
        received(&text, &self.name).with_context(|| format!("no device {}", self.name))
    }
}

/// Packets that `device` has received, after `/proc/net/dev`.
fn received(text: &str, device: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    line?.split_whitespace().nth(1)?.parse().ok()
}

/// A wire with one pod.
#[derive(Debug)]
pub(super) struct Site {
    /// Name of the near end, on the node.
    pub(super) master: String,
    /// Name of the far end, in `outside`.
    pub(super) wire: String,
    /// Index of the far end.
    pub(super) wire_index: u32,
    /// The pod's namespace.
    pub(super) pod: Namespace,
    /// The master's counts.
    pub(super) master_device: Device,
}

impl Site {
    /// A wire between `node` and `outside`, and a namespace without an interface for the pod.
    pub(super) fn new(number: usize, node: &Namespace, outside: &Namespace) -> Result<Self> {
        let (master, wire) = (format!("m{number}"), format!("w{number}"));
        node.ip(&[
            format!(
                "link add {master} type veth peer name {wire} address {} netns {}",
                text(PEER_MAC),
                outside.name()
            ),
            format!("link set {master} up"),
        ])?;
        outside.ip(&[format!("link set {wire} up")])?;
        let wire_index = outside.within(|| nix::net::if_::if_nametoindex(wire.as_str()))??;
        let master_device = Device::new(node, &master)?;
        Ok(Self { master, wire, wire_index, pod: Namespace::quiet("pod")?, master_device })
    }

    /// Gives the pod the interface that the standard plugin would have made.
    pub(super) fn plain_pod(&self, node: &Namespace) -> Result<()> {
        node.ip(&[format!(
            "link add link {} name {INTERFACE} address {} netns {} type macvlan mode bridge",
            self.master,
            text(mac()),
            self.pod.name()
        )])?;
        self.pod.ip(&[format!("addr add {POD}/24 dev {INTERFACE}"), format!("link set {INTERFACE} up")])
    }

    /// Tells the pod's kernel where the gateway is, so that nobody has to ask, and opens its socket.
    pub(super) fn connect(&self) -> Result<UdpSocket> {
        self.pod.ip(&[
            format!("route replace default via {GATEWAY} dev {INTERFACE}"),
            format!("neigh replace {GATEWAY} lladdr {} dev {INTERFACE} nud permanent", text(PEER_MAC)),
        ])?;
        let socket =
            self.pod.within(|| UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))))??;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Has the master take frames of the generator. A veth does so where it polls, which GRO makes it do.
    pub(super) fn poll(&self, node: &Namespace) -> Result<()> {
        node.run(Command::new("ethtool").args(["-K", &self.master, "gro", "on"]), "")
    }
}

/// A frame of UDP with 18 bytes for the pod, and what answers to one that it sent.
pub(super) fn frame_to_pod(source: Ipv4Addr, source_port: u16) -> Result<Vec<u8>> {
    let mut frame = crate::frames::udp4((PEER_MAC, mac()), source, POD);
    let (header, ports) = (14..34, 34..38);
    let sum = checksum(&frame[header.clone()]);
    frame[header][10..12].copy_from_slice(&sum.to_be_bytes());
    frame[ports].copy_from_slice(&[source_port.to_be_bytes(), PORT.to_be_bytes()].concat());
    ensure!(frame.len() == 14 + 20 + 8 + 18, "a frame of {} bytes", frame.len());
    Ok(frame)
}

/// Of an IPv4 header whose own checksum is zero.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_stand_behind_the_bytes_of_the_device_that_is_named() {
        let text = "Inter-|   Receive\n face |bytes    packets errs\n  net1: 4200 42 0 0\nnet11:7 8 0 0\n";
        assert_eq!(received(text, "net1"), Some(42));
        assert_eq!(received(text, "net11"), Some(8));
        assert_eq!(received(text, "net"), None);
    }

    #[test]
    fn a_header_with_its_checksum_sums_up_to_nothing() {
        let frame = frame_to_pod(GATEWAY, 53).expect("a frame");
        assert_ne!(&frame[24..26], &[0, 0]);
        assert_eq!(checksum(&frame[14..34]), 0);
        assert_eq!(&frame[34..38], &[0, 53, 0x30, 0x39]);
    }
}
