//! `static`: the configuration names the addresses, nothing is stored.

use std::net::IpAddr;

use super::refused::{self, Refuse, RefusedAddress};
use super::{IpamResult, code};
use crate::spec::{CniResult, IfName, IpConfig, StaticConf};

pub(super) fn add(conf: &StaticConf, refuse: Refuse<'_>) -> Result<IpamResult, StaticError> {
    let ips: Vec<_> = conf
        .addresses
        .iter()
        .map(|&(address, gateway)| IpConfig { address, gateway, interface: None })
        .collect();
    if let Some(refused) = refused::any(&ips, refuse) {
        return Err(StaticError::Refused(refused));
    }
    Ok(IpamResult { ips, routes: conf.routes.clone(), dns: conf.dns.clone() })
}

/// The standard plugin compares the gateway of an address that it finds, and does not miss one that it does not find.
pub(super) fn check(
    conf: &StaticConf,
    ifname: &IfName,
    prev_result: Option<&CniResult>,
) -> Result<(), StaticError> {
    let prev_result = prev_result.ok_or(StaticError::NoPrevResult)?;
    for &(address, gateway) in &conf.addresses {
        let is_there = prev_result
            .ips
            .iter()
            .any(|ip| ip.address.ip() == address.ip() && (gateway.is_none() || gateway == ip.gateway));
        if !is_there {
            return Err(StaticError::NoMatch { address: address.ip(), ifname: ifname.clone() });
        }
    }
    Ok(())
}

/// Why `static` failed.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    /// A configured address is one that no pod may have.
    #[error(transparent)]
    Refused(RefusedAddress),
    /// CHECK has nothing to compare with.
    #[error("Required prevResult missing")]
    NoPrevResult,
    /// CHECK found the attachment without the address, or with another gateway.
    #[error("static: Failed to match addr {address} on interface {ifname}")]
    NoMatch {
        /// The configured address.
        address: IpAddr,
        /// The interface.
        ifname: IfName,
    },
}

impl StaticError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Refused(_) => code::REFUSED,
            Self::NoPrevResult => crate::spec::code::CONF,
            Self::NoMatch { .. } => code::CHECK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Dns;

    fn conf(addresses: &[(&str, Option<&str>)]) -> StaticConf {
        let parse = |&(address, gateway): &(&str, Option<&str>)| {
            (address.parse().unwrap(), gateway.map(|gateway| gateway.parse().unwrap()))
        };
        StaticConf {
            addresses: addresses.iter().map(parse).collect(),
            routes: vec![],
            dns: Dns { nameservers: vec!["10.0.0.53".to_owned()], ..Dns::default() },
            nad_subnets: vec![],
            nad_gateways: vec![],
        }
    }

    #[test]
    fn what_is_configured_is_what_is_got() {
        let conf = conf(&[("10.1.2.3/24", Some("10.1.2.1")), ("fd00::3/64", None)]);
        let result = add(&conf, &|_| None).unwrap();
        let got: Vec<_> = result.ips.iter().map(|ip| (ip.address, ip.gateway)).collect();
        assert_eq!(got, conf.addresses);
        assert_eq!(result.dns, conf.dns);
        assert!(add(&conf, &|address| address.is_ipv6().then(|| "is old".to_owned())).is_err());
    }

    #[test]
    fn check_misses_what_is_missing() {
        let ifname = IfName::parse("ifname", "net1").unwrap();
        let prev = |addresses: &[(&str, Option<&str>)]| CniResult {
            ips: add(&conf(addresses), &|_| None).unwrap().ips,
            ..CniResult::default()
        };
        let both = conf(&[("10.1.2.3/24", Some("10.1.2.1")), ("fd00::3/64", None)]);
        let test = |prev_result: Option<&CniResult>| {
            check(&both, &ifname, prev_result).map_err(|error| error.to_string())
        };

        assert_eq!(
            test(Some(&prev(&[("10.1.2.3/24", Some("10.1.2.1")), ("fd00::3/64", Some("fd00::1"))]))),
            Ok(())
        );
        assert_eq!(test(None).unwrap_err(), "Required prevResult missing");
        let text = "static: Failed to match addr fd00::3 on interface net1";
        assert_eq!(test(Some(&prev(&[("10.1.2.3/24", Some("10.1.2.1"))]))).unwrap_err(), text);
        let text = "static: Failed to match addr 10.1.2.3 on interface net1";
        assert_eq!(test(Some(&prev(&[("10.1.2.3/24", None), ("fd00::3/64", None)]))).unwrap_err(), text);
    }
}
