//! Checksums that the kernel leaves to be filled in behind the programs: two bytes of a frame that are not yet what they will
//! be, where the sender said. Whether they lie over anything that is judged.
//!
//! Pure: where they are is found out by `programs::settle`, in bytes from the beginning of the frame.

use crate::packet::{ETH_ARP, ETH_IPV4, ETH_IPV6, Facts, ICMP, ICMPV6, l3};

/// Where the field begins: `start` and `offset` as the kernel records them, from the beginning of the memory that the frame is in,
/// which has `headroom` bytes before the frame.
#[inline(always)]
pub fn field(start: u16, offset: u16, headroom: i64) -> i64 {
    i64::from(start) + i64::from(offset) - headroom
}

/// Whether `field` may lie over the source of a frame of this ethertype: over its MAC or its address. Then neither is a proof of
/// anything.
#[inline(always)]
pub fn is_over_source(field: i64, ethertype: u16) -> bool {
    // Where the addresses end.
    let addresses = match ethertype {
        ETH_IPV4 => 34,
        ETH_IPV6 => 54,
        // It has none that anybody could fill in.
        ETH_ARP => return true,
        // Of anything else only the MAC is looked at.
        _ => 14,
    };
    field < addresses
}

/// Whether `field` lies behind the ports of a plain packet ([`crate::flow`]) whose transport header begins at `transport`, and so
/// behind all that is judged of it.
#[inline(always)]
pub fn is_behind_ports(field: i64, transport: i64) -> bool {
    transport + 4 <= field
}

/// Whether `field` lies behind everything that is judged of the frame with these facts, which were read `skip` bytes into it.
#[inline(always)]
pub fn is_behind(field: i64, facts: &Facts, skip: u32) -> bool {
    let transport = i64::from(facts.transport) + i64::from(skip);
    let is_icmp = match facts.l3 {
        l3::V4 => facts.protocol == ICMP,
        l3::V6 => facts.protocol == ICMPV6,
        _ => return false,
    };
    match is_icmp {
        // Its type, target and options are judged, its own checksum is not; a kernel that balances load (IPVS) leaves that open.
        true => field == transport + 2,
        // Behind the ports.
        false => is_behind_ports(field, transport),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    #[test]
    fn a_field_is_found_from_the_beginning_of_the_frame() {
        // A TCP socket's: the transport header 34 bytes into the frame, the checksum 16 into that.
        assert_eq!(field(64 + 34, 16, 64), 50);
        assert_eq!(field(0, 0, 64), -64, "a packet socket can say what it likes");
        assert_eq!(field(u16::MAX, u16::MAX, 0), 131_070);
    }

    #[test]
    fn what_lies_over_the_source_begins_before_the_addresses_end() {
        for (ethertype, end) in [(ETH_IPV4, 34), (ETH_IPV6, 54), (0x88cc, 14), (0x8100, 14)] {
            for field in [-64, 0, 6, 11, end - 2, end - 1] {
                assert!(is_over_source(field, ethertype), "{ethertype:#x} {field}");
            }
            for field in [end, end + 1, 1500] {
                assert!(!is_over_source(field, ethertype), "{ethertype:#x} {field}");
            }
        }
        for field in [-1, 14, 42, 1500] {
            assert!(is_over_source(field, ETH_ARP), "ARP has no checksum: {field}");
        }
    }

    /// Facts of a frame whose transport header begins there.
    fn facts(l3: u8, protocol: u8, transport: u16) -> Facts {
        Facts { l3, protocol, transport, ..Facts::default() }
    }

    #[test]
    fn only_what_begins_behind_the_ports_is_behind_what_is_judged() {
        for (l3, transport) in [(l3::V4, 34), (l3::V4, 74), (l3::V6, 54), (l3::V6, 94)] {
            for protocol in [TCP, UDP] {
                for skip in [0, 4] {
                    let facts = facts(l3, protocol, transport);
                    let behind = i64::from(transport) + i64::from(skip) + 4;
                    for field in [-64, 0, 14, 26, behind - 4, behind - 2, behind - 1] {
                        assert!(!is_behind(field, &facts, skip), "{facts:?} {skip} {field}");
                    }
                    // The checksums of UDP and TCP, and one of something further back.
                    for field in [behind, behind + 2, behind + 12, 1500] {
                        assert!(is_behind(field, &facts, skip), "{facts:?} {skip} {field}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_icmp_its_own_checksum_alone_may_be_open() {
        for (l3, protocol, transport) in [(l3::V4, ICMP, 34), (l3::V6, ICMPV6, 54), (l3::V6, ICMPV6, 62)] {
            for skip in [0, 4] {
                let facts = facts(l3, protocol, transport);
                let own = i64::from(transport) + i64::from(skip) + 2;
                for field in [own - 2, own - 1, own + 1, own + 2, own + 6, 1500] {
                    assert!(!is_behind(field, &facts, skip), "{facts:?} {skip} {field}");
                }
                assert!(is_behind(own, &facts, skip), "{facts:?} {skip}");
            }
        }
        // The number of one family is nothing in the other.
        assert!(
            !is_behind(36, &facts(l3::V4, ICMPV6, 34), 0) && is_behind(38, &facts(l3::V4, ICMPV6, 34), 0)
        );
    }

    #[test]
    fn what_has_no_addresses_has_no_open_checksum() {
        for l3 in [l3::ARP, l3::NONE] {
            for field in [0, 2, 4, 14, 42, 1500] {
                assert!(!is_behind(field, &facts(l3, 0, 0), 0), "{l3} {field}");
            }
        }
    }
}
