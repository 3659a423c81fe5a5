//! What a configuration of type `macvlan` asks for.

use super::NetConf;
use crate::spec::args::CniArgs;
use crate::spec::error::ConfError;
use crate::spec::json::View;
use crate::spec::names::Mac;

/// Longest name of a link, alternative names included (the kernel's `ALTIFNAMSIZ`, without its final zero).
const ALTERNATIVE_NAME_MAX: usize = 127;

/// How macvlans of one master reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MacvlanMode {
    /// Directly.
    Bridge,
    /// Not at all.
    Private,
    /// By way of a switch that sends frames back.
    Vepa,
    /// There is but one, with the master's own address.
    Passthru,
}

impl MacvlanMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    /// As it is written in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }

    fn parse(field: &str, value: &str) -> Result<Self, ConfError> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == value).ok_or_else(|| {
            ConfError::field(
                field,
                value,
                "unknown macvlan mode: write one of bridge, private, vepa, passthru",
            )
        })
    }
}

/// A macvlan as a configuration asks for it; what the host has is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvlanConf {
    /// The master, by a name it has; without one it is the interface of the default route.
    pub master: Option<String>,
    /// Mode; `bridge` where none is given.
    pub mode: MacvlanMode,
    /// Without one it is the master's. Whether the master's is large enough is for the caller to see.
    pub mtu: Option<u32>,
    /// `runtimeConfig.mac`, else `MAC` of `CNI_ARGS`, else `mac`; without one the kernel takes one at random.
    pub mac: Option<Mac>,
    /// The master is in the sandbox, not on the host.
    pub link_in_container: bool,
    /// Length of the queue for broadcast frames; without one it is the kernel's.
    pub bc_queue_len: Option<u32>,
}

impl MacvlanConf {
    /// Reads the part of `conf` that is about the macvlan.
    pub fn from_conf(conf: &NetConf, args: &CniArgs) -> Result<Self, ConfError> {
        let view = View::root(&conf.raw);
        let own_mac = view.parsed("mac", Mac::parse)?;
        let macs = [("runtimeConfig.mac", conf.runtime.mac), ("CNI_ARGS MAC", args.mac), ("mac", own_mac)];
        let mac = macs.into_iter().find_map(|(field, mac)| Some((field, mac?)));
        if let Some((field, mac)) = mac.filter(|(_, mac)| !mac.is_usable()) {
            let rule = "an interface cannot have a group's or the zero address: \
                        write one with an even first byte, such as 0a:58:0a:01:02:03";
            return Err(ConfError::field(field, mac.to_string(), rule));
        }
        Ok(Self {
            master: view.parsed("master", link_name)?,
            mode: view.parsed("mode", MacvlanMode::parse)?.unwrap_or(MacvlanMode::Bridge),
            mtu: view.nonzero("mtu")?,
            mac: mac.map(|(_, mac)| mac),
            link_in_container: view.bool("linkInContainer")?,
            bc_queue_len: view.nonzero("bcqueuelen")?,
        })
    }
}

fn link_name(field: &str, value: &str) -> Result<String, ConfError> {
    if ALTERNATIVE_NAME_MAX < value.len() || value.bytes().any(|b| matches!(b, 0 | b'/')) {
        return Err(ConfError::field(
            field,
            value,
            "write the name of a link, such as eth1, or an alternative name of at most 127 bytes",
        ));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(keys: Value, args: &str) -> Result<MacvlanConf, ConfError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "mv", "type": "macvlan"});
        for (key, value) in keys.as_object().expect("keys are an object") {
            conf[key] = value.clone();
        }
        let conf = NetConf::parse(conf.to_string().as_bytes()).expect("is valid");
        MacvlanConf::from_conf(&conf, &CniArgs::parse(args).expect("is valid"))
    }

    #[test]
    fn nothing_given_is_bridge_on_the_default_route() {
        let expected = MacvlanConf {
            master: None,
            mode: MacvlanMode::Bridge,
            mtu: None,
            mac: None,
            link_in_container: false,
            bc_queue_len: None,
        };
        assert_eq!(read(json!({}), "").expect("is valid"), expected);
        let zeros =
            json!({"master": "", "mode": "", "mtu": 0, "mac": "", "linkInContainer": null, "bcqueuelen": 0});
        assert_eq!(read(zeros, "").expect("is valid"), expected);
    }

    #[test]
    fn everything_given() {
        let conf = json!({"Master": "enp0s8", "MODE": "vepa", "mtu": 1400, "mac": "0A:58:0a:01:02:03",
            "linkincontainer": true, "bcQueueLen": 500, "promisc": true});
        let expected = MacvlanConf {
            master: Some("enp0s8".into()),
            mode: MacvlanMode::Vepa,
            mtu: Some(1400),
            mac: Some(Mac::new([0x0a, 0x58, 0x0a, 1, 2, 3])),
            link_in_container: true,
            bc_queue_len: Some(500),
        };
        assert_eq!(read(conf, "").expect("is valid"), expected);
    }

    #[test]
    fn every_mode_is_read_as_it_is_written() {
        for mode in MacvlanMode::ALL {
            assert_eq!(read(json!({"mode": mode.as_str()}), "").expect("is valid").mode, mode);
        }
    }

    #[test]
    fn the_mac_of_the_runtime_wins_over_that_of_args_over_that_of_the_configuration() {
        let mac = |conf, args| read(conf, args).expect("is valid").mac.map(|mac| mac.bytes()[5]);
        let both = json!({"mac": "02:00:00:00:00:01", "RuntimeConfig": {"Mac": "02:00:00:00:00:03"}});
        assert_eq!(mac(json!({"mac": "02:00:00:00:00:01"}), ""), Some(1));
        assert_eq!(mac(json!({"mac": "02:00:00:00:00:01"}), "MAC=02:00:00:00:00:02"), Some(2));
        assert_eq!(mac(both, "MAC=02:00:00:00:00:02"), Some(3));
    }

    #[test]
    fn errors_name_field_value_and_fix() {
        let rule = "an interface cannot have a group's or the zero address: write one with an even first byte, \
                    such as 0a:58:0a:01:02:03";
        for (keys, args, expected) in [
            (json!({"mode": "source"}), "", "mode `source`: unknown macvlan mode: write one of bridge, private, vepa, passthru".to_owned()),
            (json!({"mode": "Bridge"}), "", "mode `Bridge`: unknown macvlan mode: write one of bridge, private, vepa, passthru".to_owned()),
            (json!({"mtu": -1}), "", "mtu `-1`: must lie between 0 and 4294967295".to_owned()),
            (json!({"mtu": "1500"}), "", "mtu `\"1500\"` is not a number".to_owned()),
            (json!({"mac": "x"}), "", "mac `x`: write a hardware address as six bytes: 0a:58:0a:01:02:03".to_owned()),
            (json!({"mac": "01:00:5e:00:00:01"}), "", format!("mac `01:00:5e:00:00:01`: {rule}")),
            (json!({}), "MAC=ff:ff:ff:ff:ff:ff", format!("CNI_ARGS MAC `ff:ff:ff:ff:ff:ff`: {rule}")),
            (json!({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}), "", format!("runtimeConfig.mac `00:00:00:00:00:00`: {rule}")),
            (json!({"master": "../x"}), "", "master `../x`: write the name of a link, such as eth1, or an alternative name of at most 127 bytes".to_owned()),
            (json!({"linkInContainer": "yes"}), "", "linkInContainer `\"yes\"` is not true or false".to_owned()),
        ] {
            assert_eq!(read(keys, args).expect_err(&expected).to_string(), expected);
        }
    }
}
