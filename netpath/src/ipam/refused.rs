//! Addresses that no pod may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::spec::IpConfig;

/// Says why a pod must not have an address: the rest of a sentence that begins with it, as in
/// "is the node's own, on `enp0s8`".
pub type Refuse<'a> = &'a dyn Fn(IpAddr) -> Option<String>;

/// An address that no pod may have was asked for, or chosen by a plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address} {why}: ask for another one, or take it out of the range")]
pub struct RefusedAddress {
    /// The address.
    pub address: IpAddr,
    /// The rest of the sentence.
    pub why: String,
}

/// The first of `ips` that no pod may have.
pub(super) fn any(ips: &[IpConfig], refuse: Refuse<'_>) -> Option<RefusedAddress> {
    ips.iter().find_map(|ip| {
        let address = ip.address.ip();
        let why = if ip.gateway == Some(address) {
            Some("is its own gateway".to_owned())
        } else {
            by_nature(&ip.address).map(str::to_owned).or_else(|| refuse(address))
        };
        why.map(|why| RefusedAddress { address, why })
    })
}

/// The first of `ips`, which somebody asked for, that lies in none of `subnets`, or is there what no pod may be.
/// The prefix length that was asked for says nothing: whoever asks may have chosen it.
pub(super) fn beyond(ips: &[IpConfig], subnets: &[IpNetwork], gateways: &[IpAddr]) -> Option<RefusedAddress> {
    ips.iter().find_map(|ip| {
        let address = ip.address.ip();
        let mut around = subnets.iter().filter(|subnet| subnet.contains(address)).peekable();
        let why = if around.peek().is_none() {
            let subnets: Vec<_> = subnets.iter().map(|subnet| format!("`{subnet}`")).collect();
            Some(format!("is not in what the network itself names, {}", subnets.join(", ")))
        } else if gateways.contains(&address) {
            Some("is the gateway of the network".to_owned())
        } else {
            let mut natures = around.filter_map(|subnet| {
                by_nature(&IpNetwork::new(address, subnet.prefix()).ok()?).map(str::to_owned)
            });
            natures.next()
        };
        why.map(|why| RefusedAddress { address, why })
    })
}

/// Why the address of `network` cannot be an interface's, whoever asks.
pub(super) fn by_nature(network: &IpNetwork) -> Option<&'static str> {
    match network {
        IpNetwork::V4(v4) => {
            // Two addresses or one have neither a network nor a broadcast address (RFC 3021).
            let has_ends = v4.prefix() < 31;
            match v4.ip() {
                ip if ip.is_unspecified() => Some("is the unspecified address"),
                ip if ip.is_multicast() => Some("is a multicast address"),
                Ipv4Addr::BROADCAST => Some("is the broadcast address"),
                ip if has_ends && ip == v4.network() => Some("is the address of the network itself"),
                ip if has_ends && ip == v4.broadcast() => Some("is the broadcast address of the network"),
                _ => None,
            }
        }
        IpNetwork::V6(v6) => match v6.ip() {
            Ipv6Addr::UNSPECIFIED => Some("is the unspecified address"),
            ip if ip.is_multicast() => Some("is a multicast address"),
            // Every router of the network listens to it (RFC 4291, 2.6.1), except where two ends share a link.
            ip if v6.prefix() < 127 && ip == v6.network() => {
                Some("is the routers' anycast address of the network")
            }
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_by_nature() {
        let check = |network: &str, want: Option<&str>| {
            let got = by_nature(&network.parse().unwrap());
            assert!(
                match (got, want) {
                    (Some(got), Some(want)) => got.contains(want),
                    (None, None) => true,
                    _ => false,
                },
                "{network}: {got:?}"
            );
        };
        check("10.1.2.3/24", None);
        check("10.1.2.0/24", Some("network itself"));
        check("10.1.2.255/24", Some("broadcast address of the network"));
        check("10.1.2.255/16", None);
        check("10.1.2.0/31", None);
        check("10.1.2.1/31", None);
        check("10.1.2.3/32", None);
        check("0.0.0.0/0", Some("unspecified"));
        check("255.255.255.255/32", Some("broadcast"));
        check("224.0.0.5/24", Some("multicast"));
        check("fd00::1/64", None);
        check("fd00::/64", Some("anycast"));
        check("fd00::/127", None);
        check("fd00::/128", None);
        check("fd00::ffff:ffff:ffff:ffff/64", None);
        check("ff02::1/64", Some("multicast"));
        check("::/128", Some("unspecified"));
    }

    #[test]
    fn the_first_refused_one_is_named() {
        let ip = |address: &str, gateway: Option<&str>| IpConfig {
            address: address.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            interface: None,
        };
        let own: IpAddr = "10.1.2.9".parse().unwrap();
        let refuse = |address: IpAddr| (address == own).then(|| "is the node's own, on `eno1`".to_owned());
        assert_eq!(any(&[ip("10.1.2.3/24", Some("10.1.2.1")), ip("fd00::3/64", None)], &refuse), None);
        let refused = any(&[ip("10.1.2.3/24", None), ip("10.1.2.9/24", None)], &refuse).unwrap();
        assert_eq!(
            refused.to_string(),
            "address 10.1.2.9 is the node's own, on `eno1`: ask for another one, or take it out of the range"
        );
        let gateway = any(&[ip("10.1.2.1/24", Some("10.1.2.1"))], &refuse).unwrap();
        assert_eq!(gateway.why, "is its own gateway");
    }
}
