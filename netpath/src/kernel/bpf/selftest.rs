//! The safety net before a program is attached: the loaded program must let the host's own frames pass.

use std::os::fd::OwnedFd;

use aya::{programs::ProgramError, sys::SyscallError};

use super::{BpfError, Hook, sys};

/// What TC programs return for "go on": `TC_ACT_UNSPEC`.
pub const NEXT: i32 = -1;
/// What XDP programs return for "go on".
pub const XDP_PASS: i32 = 2;

/// Frames a host sends and receives, `mac` being its own; sent ones have it as source, received ones as
/// destination. None of them may ever be dropped, whatever else they are. Each has the header that its ethertype
/// promises: newer kernels refuse to run a TC program on less.
pub fn host_frames(mac: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let broadcast = [0xff; 6];
    let peer = [0x02, 0, 0, 0, 0, 0x99];
    let frame = |destination: [u8; 6], ethertype: [u8; 2], body: &[u8]| {
        [&destination[..], &mac, &ethertype, body].concat()
    };
    let ipv4 = |protocol: u8, destination: [u8; 4], body: &[u8]| {
        let total = u16::try_from(20 + body.len()).unwrap_or(u16::MAX).to_be_bytes();
        let header = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1];
        [&header[..], &destination, body].concat()
    };
    let ipv6 = |next: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, length[0], length[1], next, 255];
        header.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2]);
        header.extend(body);
        header
    };
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &[192, 0, 2, 1], &[0; 6], &[192, 0, 2, 2]].concat();
    let mut discover = vec![0, 68, 0, 67, 0, 16, 0, 0];
    discover.extend([1, 1, 6, 0, 0, 0, 0, 0]);
    let mut tcp = vec![0x9c, 0x40, 0, 22, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    tcp.extend([0; 32]);
    let solicitation =
        [&[135, 0, 0, 0, 0, 0, 0, 0][..], &[0xfe, 0x80], &[0; 13], &[2], &[1, 1], &mac].concat();
    let router = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    vec![
        ("14 bytes of Ethernet", frame(peer, [0x88, 0xb5], &[])),
        ("ARP request", frame(broadcast, [8, 6], &arp)),
        ("gratuitous reply of another form", frame(broadcast, [8, 6], &[0; 28])),
        ("DHCP discover", frame(broadcast, [8, 0], &ipv4(17, [255; 4], &discover))),
        ("TCP SYN", frame(peer, [8, 0], &ipv4(6, [198, 51, 100, 7], &tcp))),
        ("UDP to anywhere", frame(peer, [8, 0], &ipv4(17, [8, 8, 8, 8], &[0; 8]))),
        (
            "IPv4 with wrong lengths",
            frame(peer, [8, 0], &[[0x4f, 0, 0xff, 0xff], [7; 4], [7; 4], [7; 4], [7; 4]].concat()),
        ),
        (
            "neighbour solicitation",
            frame([0x33, 0x33, 0xff, 0, 0, 2], [0x86, 0xdd], &ipv6(58, &solicitation)),
        ),
        ("router advertisement", frame([0x33, 0x33, 0, 0, 0, 1], [0x86, 0xdd], &ipv6(58, &router))),
        ("LLDP", frame([1, 0x80, 0xc2, 0, 0, 0x0e], [0x88, 0xcc], &[2, 7, 4, 0, 0, 0])),
        ("LLC", frame([1, 0x80, 0xc2, 0, 0, 0], [0, 38], &[0x42, 0x42, 3])),
        ("802.1Q tag", frame(peer, [0x81, 0], &[0, 100, 8, 0, 0x45, 0])),
        ("private ethertype", frame(peer, [0x88, 0xb5], &[1, 2, 3])),
    ]
}

/// Runs `program` on every host frame, as sender and as receiver; the first that does not pass is an error.
pub(super) fn run(program: &OwnedFd, hook: Hook, macs: &[[u8; 6]]) -> Result<(), BpfError> {
    let failed = |io_error| ProgramError::SyscallError(SyscallError { call: "bpf_prog_test_run", io_error });
    let refused = |error| BpfError::Program { program: hook.name(), source: Box::new(failed(error)) };
    let pass = if hook == Hook::Xdp { XDP_PASS } else { NEXT };
    for mac in macs {
        for (name, mut frame) in host_frames(*mac) {
            if hook != Hook::Egress {
                frame.copy_within(0..6, 6);
                frame[..6].copy_from_slice(mac);
            }
            let verdict = sys::test_run(program, &frame).map_err(refused)?.cast_signed();
            if verdict != pass {
                return Err(BpfError::SelfTest { program: hook.name(), frame: name, verdict });
            }
        }
    }
    Ok(())
}
