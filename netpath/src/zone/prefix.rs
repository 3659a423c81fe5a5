//! Prefixes as people write them in `zone` and `masters.json`.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::ValueError;

/// Ranges that the zone never judges, because a rule of their own does: a prefix inside one would be a
/// promise that nobody keeps.
const NOT_JUDGED: &[(IpAddr, u8, &str)] = &[
    (
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)),
        10,
        "link-local addresses have a rule of their own and cannot be in a zone",
    ),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 24, "multicast on the link always passes"),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32, "broadcast on the link always passes"),
    (IpAddr::V6(Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 0)), 16, "multicast on the interface always passes"),
    (IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0)), 16, "multicast on the link always passes"),
];

/// Parses `10.12.34.0/24`, or a bare address as the prefix that holds it alone.
///
/// Host bits are refused and not cut off: `10.12.34.13/24` may have been meant as the host or as the net,
/// and a zone must not guess.
pub(super) fn parse(key: &str, text: &str) -> Result<IpNetwork, ValueError> {
    let not_a_prefix = || ValueError::NotAPrefix { key: key.to_owned(), value: text.to_owned() };
    let (address, length) = match text.split_once('/') {
        None => (text, None),
        Some((address, length)) => (address, Some(length)),
    };
    let address: IpAddr = address.parse().map_err(|_| not_a_prefix())?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => full,
        Some(digits)
            if digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0')) =>
        {
            digits.parse().map_err(|_| not_a_prefix())?
        }
        Some(_) => return Err(not_a_prefix()),
    };
    let written = IpNetwork::new(address, length).map_err(|_| not_a_prefix())?;
    let prefix = canonical(written);
    if prefix != written {
        return Err(ValueError::HostBits { key: key.to_owned(), value: text.to_owned(), network: prefix });
    }
    if let IpAddr::V6(mapped) = address
        && let Some(address) = mapped.to_ipv4_mapped()
        && 96 <= length
    {
        let meant = IpNetwork::new(IpAddr::V4(address), length - 96).map_err(|_| not_a_prefix())?;
        return Err(ValueError::Mapped { key: key.to_owned(), value: text.to_owned(), meant });
    }
    for &(range, length, rule) in NOT_JUDGED {
        let range = IpNetwork::new(range, length).map_err(|_| not_a_prefix())?;
        if covers(range, prefix) {
            return Err(ValueError::NotJudged { key: key.to_owned(), value: text.to_owned(), rule });
        }
    }
    Ok(prefix)
}

/// Parses a list under `key`.
pub(super) fn parse_list(key: &str, texts: &[&str]) -> Result<Vec<IpNetwork>, ValueError> {
    texts.iter().map(|text| parse(key, text)).collect()
}

/// `network` without host bits.
pub(super) fn canonical(network: IpNetwork) -> IpNetwork {
    match network {
        IpNetwork::V4(v4) => {
            ipnetwork::Ipv4Network::new_checked(v4.network(), v4.prefix()).map(IpNetwork::V4)
        }
        IpNetwork::V6(v6) => {
            ipnetwork::Ipv6Network::new_checked(v6.network(), v6.prefix()).map(IpNetwork::V6)
        }
    }
    .unwrap_or(network)
}

/// Whether every address of `inner` is one of `outer`.
pub(super) fn covers(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Whether one of `outer` covers `inner` as a whole.
pub(super) fn covered_by(outer: &[IpNetwork], inner: IpNetwork) -> bool {
    outer.iter().any(|&outer| covers(outer, inner))
}

/// The shortest prefix length that a zone may hold unless the administrator allows wider ones.
pub(super) fn shortest(prefix: IpNetwork) -> u8 {
    if prefix.is_ipv4() { 8 } else { 32 }
}

/// A list in an error message.
pub(super) struct Listed<'a, T>(pub(super) &'a [T]);

impl<T: Display> Display for Listed<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        for (index, item) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}`{item}`")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let result = match parse("zone.allow", text) {
            Ok(prefix) => prefix.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(result, expected);
    }

    #[test]
    fn prefixes_as_people_write_them() {
        check("10.12.34.0/24", "10.12.34.0/24");
        check("10.12.34.13", "10.12.34.13/32");
        check("10.12.34.13/32", "10.12.34.13/32");
        check("0.0.0.0/0", "0.0.0.0/0");
        check("fd00:12::/48", "fd00:12::/48");
        check("fd00::1", "fd00::1/128");
        check("224.0.0.0/4", "224.0.0.0/4");
    }

    #[test]
    fn mistakes_are_named_with_their_fix() {
        let not_a_prefix = |value: &str| {
            format!(
                "`zone.allow` has `{value}`: write an address like `10.12.34.13` or a prefix like `10.12.34.0/24`"
            )
        };
        for value in [
            "",
            "/",
            "10.12.34.0/",
            "10.12.34.0/33",
            "10.12.34.0/+8",
            "10.12.34.0/08",
            "10.12.34.0/255.255.255.0",
            "10.12.34/24",
            "010.12.34.0/24",
            " 10.12.34.0/24",
            "fd00::/129",
            "fe80::1%eth0",
            "gateway",
            "10.0.0.0/256",
        ] {
            check(value, &not_a_prefix(value));
        }
        check(
            "10.12.34.13/24",
            "`zone.allow` has `10.12.34.13/24`, whose host bits are set: write `10.12.34.0/24` for the network, or \
             the bare address for the host",
        );
        check(
            "fd00::1/64",
            "`zone.allow` has `fd00::1/64`, whose host bits are set: write `fd00::/64` for the network, or the bare \
             address for the host",
        );
        check(
            "::ffff:10.0.0.0/104",
            "`zone.allow` has `::ffff:10.0.0.0/104`: write it as IPv4, `10.0.0.0/8`",
        );
        check(
            "fe80::/10",
            "`zone.allow` has `fe80::/10`: link-local addresses have a rule of their own and cannot be in a zone; \
             leave it out",
        );
        check(
            "224.0.0.18",
            "`zone.allow` has `224.0.0.18`: multicast on the link always passes; leave it out",
        );
        check("ff02::1", "`zone.allow` has `ff02::1`: multicast on the link always passes; leave it out");
        check(
            "255.255.255.255",
            "`zone.allow` has `255.255.255.255`: broadcast on the link always passes; leave it out",
        );
    }
}
