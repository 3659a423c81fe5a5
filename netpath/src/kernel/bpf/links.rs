//! Links, and those of TCX before there is the program that they are for.
//!
//! The kernel waits for a grace period whenever one is made, together about as long as the verifier takes. So they are made while
//! that is at work, with a program that lets everything pass, and are given their own one afterwards, which waits for
//! nothing. Before it is pinned a link goes with this process, however that ends.
//!
//! Not that of XDP: many a NIC stops for a moment to take a program, or another one, and with it the node's own traffic. It is
//! asked once, with the right program, and when nothing else can fail any more.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::{
    Hook,
    loader::load_classifier,
    sys::{bpf, bpf_open, command, raw},
};

/// The TCX links of some hooks of one interface, each as far as it could be made.
#[derive(Debug)]
pub(super) struct Links(Vec<(Hook, io::Result<OwnedFd>)>);

impl Links {
    /// Makes them; the interface is one of the calling thread's namespace.
    ///
    /// An error of a link is what the kernel says of it; whatever else fails is told apart by being the whole's.
    pub(super) fn make(hooks: &[Hook], ifindex: u32) -> io::Result<Self> {
        if hooks.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let program = passing()?;
        let link = |hook| create(program.as_fd(), ifindex, hook);
        Ok(Self(hooks.iter().map(|hook| (*hook, link(*hook))).collect()))
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

/// A classifier that lets everything pass.
fn passing() -> io::Result<OwnedFd> {
    const NEXT: u64 = 0xffff_ffff;
    // `r0 = NEXT`, `exit`; the name is for who looks at the NIC meanwhile.
    load_classifier(NAME, &[0xb7 | NEXT << 32, 0x95])
}

/// Name of that program.
const NAME: &str = "netpath_wait";

/// `enum bpf_attach_type`.
pub(super) const TCX_INGRESS: u32 = 46;
pub(super) const TCX_EGRESS: u32 = 47;

/// Attaches `program` to a hook of an interface of the calling thread's namespace.
pub(super) fn create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    /// The beginning of the struct of BPF_LINK_CREATE, with that of TCX, whose rest says that no other program is meant.
    #[repr(C)]
    struct Attr {
        program: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 2],
    }
    const BPF_XDP: u32 = 37;
    /// Before all others.
    const BEFORE: u32 = 1 << 3;
    const XDP_NATIVE: u32 = 1 << 2;
    let (attach_type, flags) = match hook {
        Hook::Ingress => (TCX_INGRESS, BEFORE),
        Hook::Egress => (TCX_EGRESS, BEFORE),
        Hook::Xdp => (BPF_XDP, XDP_NATIVE),
    };
    let attr = Attr { program: raw(&program)?, ifindex, attach_type, flags, rest: [0; 2] };
    // SAFETY: The layout of that command's struct.
    unsafe { bpf_open(command::LINK_CREATE, &attr) }
}
