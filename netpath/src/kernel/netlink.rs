//! Links, addresses, routes and filters of one network namespace, over netlink.
//!
//! A [`Netlink`] belongs to the namespace it was opened in, whatever thread uses it. Calls block, each with a
//! deadline. Names are turned into indexes once, by the caller: an index cannot be renamed under it.

mod address;
mod decode;
mod error;
mod filter;
mod link;
mod route;
mod socket;

pub use address::Address;
pub use error::{NetlinkError, Op, Refusal};
pub use filter::{CLSACT, Filter, FilterHook, FilterPlace};
pub use link::{Link, Macvlan, Neighbour};
pub use route::Route;
/// Which addresses a route is about.
pub use rtnetlink::packet_route::AddressFamily;
/// The mode of a macvlan as the kernel has it, which knows more modes than CNI.
pub use rtnetlink::packet_route::link::MacVlanMode;

use super::netns::Netns;
use socket::Channel;

/// A netlink socket of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    channel: Channel,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { channel: Channel::open()? })
    }

    /// Opens a socket in `netns`, to be used from here.
    pub fn in_netns(netns: &Netns) -> Result<Self, NetlinkError> {
        netns.within(Self::open)?
    }
}
