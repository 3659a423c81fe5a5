//! Links that are made before there is the program that they are for.
//!
//! The kernel waits for a grace period whenever one is made, together about as long as the verifier takes. So they are made while
//! that is at work, with a program that lets everything pass, and are given their own one afterwards, which waits for
//! nothing. Before it is pinned a link goes with this process, however that ends.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{
    Hook,
    sys::{bpf, bpf_open, command, raw},
};

/// The links of some hooks of one interface, each as far as it could be made.
#[derive(Debug)]
pub(super) struct Links(Vec<(Hook, io::Result<OwnedFd>)>);

impl Links {
    /// Makes them; the interface is one of the calling thread's namespace.
    pub(super) fn make(hooks: &[Hook], ifindex: u32) -> Self {
        let link = |hook| passing(hook).and_then(|program| create(&program, ifindex, hook));
        Self(hooks.iter().map(|hook| (*hook, link(*hook))).collect())
    }

    /// That of a hook, if there should be one.
    pub(super) fn take(&mut self, hook: Hook) -> Option<io::Result<OwnedFd>> {
        let at = self.0.iter().position(|(own, _)| *own == hook)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// Makes a link run `program`: each packet meets the one before or this one.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let attr = Attr { link_fd: raw(&link)?, new_prog_fd: raw(&program)?, flags: 0, old_prog_fd: 0 };
    // SAFETY: The layout of BPF_LINK_UPDATE's struct.
    unsafe { bpf(command::LINK_UPDATE, &attr) }.map(drop)
}

/// A program that lets everything pass.
fn passing(hook: Hook) -> io::Result<OwnedFd> {
    /// The beginning of the anonymous struct of BPF_PROG_LOAD.
    #[repr(C)]
    struct Attr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
    }
    const SCHED_CLS: u32 = 3;
    const XDP: u32 = 6;
    const XDP_HAS_FRAGS: u32 = 1 << 5;
    const NEXT: i32 = -1;
    const XDP_PASS: i32 = 2;
    // A link is updated with programs of its own kind alone.
    let (kind, verdict, flags, attach_type) = match hook {
        Hook::Ingress | Hook::Egress => (SCHED_CLS, NEXT, 0, 0),
        Hook::Xdp => (XDP, XDP_PASS, XDP_HAS_FRAGS, BPF_XDP),
    };
    // `r0 = verdict`, `exit`.
    let mut code = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    code[4..8].copy_from_slice(&verdict.to_ne_bytes());
    let attr = Attr {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags,
        name: [0; 16],
        ifindex: 0,
        attach_type,
    };
    // SAFETY: The layout of that command's struct; `code` has as many instructions as it says, and the license ends with a zero.
    unsafe { bpf_open(command::PROG_LOAD, &attr) }
}

const BPF_XDP: u32 = 37;

fn create(program: &OwnedFd, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    /// The beginning of the struct of BPF_LINK_CREATE, with that of TCX, whose rest says that no other program is meant.
    #[repr(C)]
    struct Attr {
        program: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 2],
    }
    const TCX_INGRESS: u32 = 46;
    const TCX_EGRESS: u32 = 47;
    /// Before all others.
    const BEFORE: u32 = 1 << 3;
    const XDP_NATIVE: u32 = 1 << 2;
    let (attach_type, flags) = match hook {
        Hook::Ingress => (TCX_INGRESS, BEFORE),
        Hook::Egress => (TCX_EGRESS, BEFORE),
        Hook::Xdp => (BPF_XDP, XDP_NATIVE),
    };
    let attr = Attr { program: raw(program)?, ifindex, attach_type, flags, rest: [0; 2] };
    // SAFETY: The layout of that command's struct.
    unsafe { bpf_open(command::LINK_CREATE, &attr) }
}
