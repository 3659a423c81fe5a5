//! Why a packet was dropped: one table behind CLI, metrics, events and docs.

/// Makes the enum, [`DropReason::ALL`] and the texts out of one table, so that none can be forgotten.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal, $sentence:literal;)+) => {
        /// Why a packet was dropped, or would have been in mode `enforce`.
        ///
        /// Numbers are part of the ABI: they are never reused, and a reader accepts ones it does not know.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl DropReason {
            /// Every reason, in the order of its numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable name: in the CLI, in metric labels, in events and in the docs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)+ }
            }

            /// The reason with this number; `None` for one of a newer version.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

drop_reasons! {
    /// A header does not fit the frame or contradicts itself.
    Malformed = 1, "malformed",
        "A header is cut off or contradicts itself (length, version or header length).";
    /// Neither ARP nor IPv4 nor IPv6.
    Ethertype = 2, "ethertype",
        "The frame is neither ARP nor IPv4 nor IPv6; a policed interface carries nothing else.";
    /// Tagged.
    Vlan = 3, "vlan",
        "The frame carries a VLAN tag; a policed interface sends and receives untagged frames only.";
    /// IPv4 source is not the endpoint's.
    SourceV4 = 4, "source-v4",
        "The IPv4 source address is not one that was given to this interface.";
    /// IPv6 source is not the endpoint's.
    SourceV6 = 5, "source-v6",
        "The IPv6 source address is neither one that was given to this interface nor its own link-local.";
    /// ARP claims somebody else's address.
    SourceArp = 6, "source-arp",
        "The ARP sender claims a MAC or IPv4 address that is not this interface's, or the body is no IPv4 ARP.";
    /// Neighbour discovery claims somebody else's address.
    SourceNd = 7, "source-nd",
        "The neighbour discovery message claims an address or MAC that is not this interface's, or has a form that could hide one.";
    /// Nobody's MAC.
    UnknownSource = 8, "unknown-source",
        "The source MAC belongs to no attachment and not to the host, and this master drops such frames.";
    /// Router advertisement or redirect.
    RouterGuard = 9, "router-guard",
        "A pod may not send IPv6 router advertisements or redirects.";
    /// Acts as a DHCP server.
    DhcpServer = 10, "dhcp-server",
        "A pod may not answer as a DHCP server, and receives DHCP answers only if its addresses come from DHCP.";
    /// IPv4 options.
    IpOptions = 11, "ip-options",
        "The IPv4 header carries options; only Router Alert in IGMP is allowed.";
    /// IPv6 routing header or a chain that cannot be followed.
    ExtensionHeader = 12, "extension-header",
        "An IPv6 routing header, or a chain of extension headers that is too long or cut off.";
    /// Link-local unicast that is not ICMPv6.
    LinkLocal = 13, "link-local",
        "Unicast to an IPv6 link-local address is limited to ICMPv6 unless the zone has an IPv6 prefix.";
    /// Outside the zone.
    ZoneDeny = 14, "zone-deny",
        "The other end is outside the private zone of this network.";
    /// The zone is missing.
    ZoneNotLoaded = 15, "zone-not-loaded",
        "The zone of this interface is not in the maps, so nothing may pass.";
    /// The source MAC is not the sender's.
    SourceMac = 16, "source-mac",
        "The frame left this pod with the MAC of the node, of another pod or of nobody: its network namespace proves it.";
    /// A later fragment where ports decide.
    Fragment = 17, "fragment",
        "A fragment after the first has no ports, and the zone allows or denies this destination by port.";
}

const _: () = assert!(DropReason::ALL.len() < crate::abi::REASON_SLOTS);
