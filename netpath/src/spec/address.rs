//! Addresses and networks as configurations write them.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::error::ConfError;

/// An address that somebody asked for, with a prefix length or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestedIp {
    ip: IpAddr,
    prefix: Option<u8>,
}

impl RequestedIp {
    /// Parses `10.12.34.5` or `10.12.34.5/24`.
    pub fn parse(field: &str, value: &str) -> Result<Self, ConfError> {
        if value.contains('/') {
            let network = parse_network(field, value)?;
            return Ok(Self { ip: network.ip(), prefix: Some(network.prefix()) });
        }
        Ok(Self { ip: parse_ip(field, value)?, prefix: None })
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// Address and prefix length, where both are given.
    pub fn network(self) -> Option<IpNetwork> {
        self.prefix.and_then(|prefix| IpNetwork::new(self.ip, prefix).ok())
    }
}

impl fmt::Display for RequestedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "{}/{prefix}", self.ip),
            None => self.ip.fmt(f),
        }
    }
}

/// Parses an address; an IPv4 address in IPv6 notation is the IPv4 address.
pub fn parse_ip(field: &str, value: &str) -> Result<IpAddr, ConfError> {
    match value.parse::<IpAddr>() {
        Ok(ip) => Ok(ip.to_canonical()),
        Err(_) => {
            Err(ConfError::field(field, value, "write an address without prefix length, such as 10.12.34.5"))
        }
    }
}

/// Parses an address with its prefix length. Host bits stay.
///
/// IPv4 in IPv6 notation is refused: Go would read its prefix length one way and the kernel another.
pub fn parse_network(field: &str, value: &str) -> Result<IpNetwork, ConfError> {
    let network = || {
        let (ip, prefix) = value.split_once('/')?;
        if !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return None; // u8::from_str accepts `+24`.
        }
        let ip: IpAddr = ip.parse().ok()?;
        (ip.to_canonical() == ip).then_some(())?;
        IpNetwork::new(ip, prefix.parse().ok()?).ok()
    };
    network().ok_or_else(|| {
        ConfError::field(field, value, "write an address with its prefix length, such as 10.12.34.5/24")
    })
}

/// The network that an address with a prefix length lies in.
pub fn network_of(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).expect("a prefix length stays valid")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_have_a_prefix_length_and_nothing_else() {
        for good in ["10.0.0.5/24", "0.0.0.0/0", "fd00::5/64", "::/0", "10.0.0.1/32"] {
            assert_eq!(parse_network("x", good).expect("is valid").to_string(), good);
        }
        for bad in [
            "",
            "/",
            "10.0.0.5",
            "10.0.0.5/",
            "10.0.0.5/33",
            "10.0.0.5/+24",
            "10.0.0.5/-1",
            "10.0.0.5/255.255.255.0",
            "10.0.0/24",
            "010.0.0.5/24",
            "10.0.0.5/24/24",
            " 10.0.0.5/24",
            "fd00::/129",
            "fe80::1%eth0/64",
            "::ffff:10.0.0.5/120",
        ] {
            let error = parse_network("ipam.subnet", bad).expect_err(bad).to_string();
            assert_eq!(
                error,
                format!(
                    "ipam.subnet `{bad}`: write an address with its prefix length, such as 10.12.34.5/24"
                )
            );
        }
    }

    #[test]
    fn addresses_have_no_prefix_length() {
        assert_eq!(parse_ip("x", "::ffff:10.0.0.5").expect("is valid").to_string(), "10.0.0.5");
        for bad in ["", "10.0.0.5/24", "10.0.0", "10.0.0.05", "fe80::1%eth0", "localhost"] {
            assert!(parse_ip("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_may_be_either() {
        let bare = RequestedIp::parse("x", "fd00::5").expect("is valid");
        assert_eq!((bare.ip().to_string().as_str(), bare.network()), ("fd00::5", None));
        let full = RequestedIp::parse("x", "10.0.0.5/24").expect("is valid");
        assert_eq!(full.network(), Some("10.0.0.5/24".parse().expect("is valid")));
        assert_eq!((full.to_string().as_str(), bare.to_string().as_str()), ("10.0.0.5/24", "fd00::5"));
    }

    proptest! {
        #[test]
        fn a_network_is_read_as_it_is_written(ip: IpAddr, prefix in 0u8..=128) {
            prop_assume!(ip.to_canonical() == ip);
            let network = IpNetwork::new(ip, if ip.is_ipv4() { prefix % 33 } else { prefix }).expect("in range");
            prop_assert_eq!(parse_network("x", &network.to_string()).expect("our own text"), network);
            prop_assert!(network_of(network).contains(ip));
            prop_assert_eq!(network_of(network).ip(), network.network());
        }
    }
}
