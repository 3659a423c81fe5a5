//! Whether an ADD moves an interface from one namespace to another, which waits for every CPU: heard on the node.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Result, bail, ensure};
use netpath::kernel::netlink::Netlink;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

use super::{
    lab::{IFNAME, Lab, MASTER, Pod, Who},
    raw::Raw,
};
use crate::{
    Effort,
    figures::{Figures, Unit},
    samples::Samples,
    say,
};

/// Length of the head of a netlink message.
const HEAD: usize = 16;
/// Where in a message about a link its index lies.
const INDEX: usize = HEAD + 4;

/// Counts; the calling thread stands on the node.
pub(super) fn run(lab: &Lab, effort: Effort, figures: &mut Figures) -> Result<()> {
    let adds = match effort {
        Effort::Quick => 1,
        Effort::Usual => 5,
        Effort::Full => 20,
    };
    let mut ear = Ear::open()?;
    let mut pod = Pod::new()?;
    // What an ear hears that is known to happen.
    lab.node.ip(&[
        format!("link add link {MASTER} name {IFNAME} type macvlan mode bridge"),
        format!("link set {IFNAME} netns {}", pod.netns.name()),
    ])?;
    let heard = ear.strangers()?;
    ensure!(heard == 1, "one device was moved, and {heard} were heard of");
    Raw::del(&mut pod)?;
    say(format_args!(
        "\nDevices that were moved between namespaces in {adds} ADDs of each, as the node's kernel tells:\n"
    ));
    for (what, name, who) in [
        ("netpath as meta-plugin", "cni/netpath/moves", Who::Whole),
        ("netpath as the plugin `macvlan`", "cni/netpath/plain/moves", Who::Plain),
        ("standard macvlan", "cni/standard/moves", Who::Standard),
    ] {
        let mut sum = 0;
        for number in 0..adds {
            let id = format!("moves-{number}");
            lab.call(who, "ADD", &pod.netns, &id).run()?;
            sum += ear.strangers()?;
            lab.check_added(who, &mut pod)?;
            lab.call(who, "DEL", &pod.netns, &id).run()?;
            lab.check_deleted(who, &mut pod)?;
        }
        say(format_args!("- {what}: {sum}"));
        figures.put(name, Unit::Number, Samples::from_iter([f64::from(sum)]));
    }
    Ok(())
}

/// Hears of every link of the namespace it was opened in.
struct Ear {
    socket: OwnedFd,
    /// Those that are there for good.
    known: BTreeSet<u32>,
}

impl Ear {
    fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK.cast_unsigned()))?;
        let known = Netlink::open()?.links()?.into_iter().map(|link| link.index).collect();
        Ok(Self { socket, known })
    }

    /// How many links came or went since it was asked last. The kernel tells before the request that does it returns.
    fn strangers(&mut self) -> Result<u32> {
        let mut found = BTreeSet::new();
        let mut datagram = vec![0; 64 << 10];
        loop {
            match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
                Ok(length) => found.extend(links(&datagram[..length])),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => bail!("news of links were lost: {errno}"),
            }
        }
        Ok(u32::try_from(found.difference(&self.known).count())?)
    }
}

/// Indexes of the links that a datagram says are new, changed or gone.
fn links(datagram: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let (Some(length), Some(kind)) = (number(rest, 0), rest.get(4..6)) {
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        if [libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&kind) {
            found.extend(number(rest, INDEX));
        }
        // Messages begin at multiples of four; one shorter than its head is none.
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEAD).saturating_add(3) & !3;
        rest = rest.get(length..).unwrap_or_default();
    }
    found
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32, more: usize) -> Vec<u8> {
        let length = u32::try_from(HEAD + 16 + more).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10 + 4]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend(vec![0xff; 8 + more]);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn every_message_about_a_link_is_found_and_no_other() {
        let datagram = [
            message(libc::RTM_NEWLINK, 7, 5),
            message(libc::RTM_NEWADDR, 8, 0),
            message(libc::RTM_DELLINK, 9, 0),
        ]
        .concat();
        assert_eq!(links(&datagram), [7, 9]);
    }

    #[test]
    fn what_is_cut_off_ends_it() {
        let datagram = message(libc::RTM_DELLINK, 9, 0);
        assert!(links(&datagram[..INDEX]).is_empty());
        assert!(links(&[0; 8]).is_empty());
    }
}
