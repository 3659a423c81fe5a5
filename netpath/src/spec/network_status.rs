//! The network-status annotation: what a pod was given, for everybody to read.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::device_info::DeviceInfo;
use super::json::to_text;
use super::result::{CniResult, Dns, Interface};

/// Annotation of a pod: its interfaces.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// One interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    name: String,
    interface: Option<String>,
    ips: Vec<IpAddr>,
    mac: Option<String>,
    mtu: Option<u32>,
    is_default: bool,
    dns: Dns,
    device: Option<DeviceInfo>,
    gateways: Vec<IpAddr>,
}

impl NetworkStatus {
    /// The interfaces in the pod that `result` names, of the network `name`; `is_first` is the pod's first.
    ///
    /// Of several interfaces of the first network, that with a gateway is the pod's default, else the first. An
    /// address that is said to be on no interface is on the last.
    pub fn of_result(result: &CniResult, name: &str, is_first: bool) -> Vec<Self> {
        let gateways = gateways(result);
        let status = |interface: Option<&Interface>, is_default: bool| Self {
            name: name.to_owned(),
            interface: interface.map(|it| it.name.clone()),
            ips: Vec::new(),
            mac: interface.and_then(|it| it.mac.clone()),
            mtu: interface.and_then(|it| it.mtu),
            is_default,
            dns: result.dns.clone(),
            device: None,
            gateways: gateways.clone(),
        };
        if result.interfaces.len() <= 1 {
            let inside = result.interfaces.iter().find(|it| it.sandbox.is_some());
            let ips = result.ips.iter().map(|ip| ip.address.ip()).collect();
            return vec![Self { ips, ..status(inside, is_first) }];
        }
        let inside: Vec<(usize, &Interface)> =
            result.interfaces.iter().enumerate().filter(|(_, it)| it.sandbox.is_some()).collect();
        let routed = result.ips.iter().find(|ip| ip.gateway.is_some() && ip.interface.is_some());
        let default = match routed.and_then(|ip| ip.interface) {
            Some(index) => Some(index),
            None => inside.first().map(|(index, _)| *index),
        };
        let mut all: Vec<Self> =
            inside.iter().map(|(index, it)| status(Some(it), is_first && Some(*index) == default)).collect();
        for ip in &result.ips {
            let at = match ip.interface {
                Some(index) => inside.iter().position(|(own, _)| *own == index),
                None => all.len().checked_sub(1),
            };
            if let Some(status) = at.and_then(|at| all.get_mut(at)) {
                status.ips.push(ip.address.ip());
            }
        }
        all
    }

    /// The same with what is known of the network's device.
    pub fn with_device(self, device: Option<DeviceInfo>) -> Self {
        Self { device, ..self }
    }

    /// The interface's name.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// The addresses on it.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        };
        let texts = |ips: &[IpAddr]| {
            let texts: Vec<Value> = ips.iter().map(|ip| ip.to_string().into()).collect();
            Some(Value::from(texts)).filter(|_| !ips.is_empty())
        };
        put("name", Some(self.name.as_str().into()));
        put("interface", self.interface.as_deref().map(Value::from));
        put("ips", texts(&self.ips));
        put("mac", self.mac.as_deref().map(Value::from));
        put("mtu", self.mtu.map(Value::from));
        put("default", Some(true.into()).filter(|_| self.is_default));
        put("dns", Some(self.dns.to_json()));
        put("device-info", self.device.as_ref().map(DeviceInfo::to_json));
        put("gateway", texts(&self.gateways));
        Value::Object(map)
    }
}

/// The text of the annotation, to the byte as Multus writes it.
pub fn annotation(statuses: &[NetworkStatus]) -> String {
    let objects: Vec<String> = statuses.iter().map(|status| to_text(&status.to_json())).collect();
    format!("[{}]", objects.join(","))
}

/// The gateways of the default routes. A route that names none goes by that of an address of its family.
fn gateways(result: &CniResult) -> Vec<IpAddr> {
    let of_family =
        |v6: bool| result.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv6() == v6);
    let defaults = result.routes.iter().filter(|route| route.dst.prefix() == 0);
    defaults.filter_map(|route| route.gw.or_else(|| of_family(route.dst.is_ipv6()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::CniVersion;

    fn result(value: Value) -> CniResult {
        CniResult::parse(CniVersion::V1_1_0, &value).expect("is valid")
    }

    #[test]
    fn the_text_is_that_of_multus() {
        let eth0 = result(
            json!({"interfaces": [{"name": "veth1"}, {"name": "eth0", "mac": "0a:58:0a:f4:00:05",
            "sandbox": "/run/netns/p", "mtu": 1450}], "ips": [{"address": "10.244.0.5/24", "gateway": "10.244.0.1",
            "interface": 1}], "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}]}),
        );
        let net1 = result(
            json!({"interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/p"}],
            "ips": [{"address": "10.1.1.11/24", "interface": 0}, {"address": "fd00::11/64"}],
            "dns": {"nameservers": ["10.1.1.1"]}}),
        );
        let mut all = NetworkStatus::of_result(&eth0, "cbr0", true);
        all.extend(NetworkStatus::of_result(&net1, "default/mv", false));
        let expected = concat!(
            "[{\n    \"name\": \"cbr0\",\n    \"interface\": \"eth0\",\n    \"ips\": [\n        \"10.244.0.5\"\n    ],\n",
            "    \"mac\": \"0a:58:0a:f4:00:05\",\n    \"mtu\": 1450,\n    \"default\": true,\n    \"dns\": {},\n",
            "    \"gateway\": [\n        \"10.244.0.1\"\n    ]\n},{\n    \"name\": \"default/mv\",\n",
            "    \"interface\": \"net1\",\n    \"ips\": [\n        \"10.1.1.11\",\n        \"fd00::11\"\n    ],\n",
            "    \"mac\": \"02:00:00:00:00:01\",\n    \"dns\": {\n        \"nameservers\": [\n            \"10.1.1.1\"\n",
            "        ]\n    }\n}]"
        );
        assert_eq!(annotation(&all), expected);
    }

    /// What the client library of Multus writes, read off its structure and its order of fields.
    #[test]
    fn every_field_stands_where_multus_has_it() {
        let status =
            |value: Value, is_first: bool| NetworkStatus::of_result(&result(value), "web/a", is_first);
        // Interfaces on the node count when it is asked whether there is but one, and are not listed.
        let one = json!({"interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 9000, "sandbox": "/n",
            "pciID": "0000:03:02.1"}],
            "ips": [{"address": "10.1.1.11/24", "gateway": "10.1.1.1", "interface": 0}, {"address": "fd00::11/64"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.1"}, {"dst": "::/0", "gw": "fd00::1"}, {"dst": "10.0.0.0/8", "gw": "10.1.1.9"}],
            "dns": {"nameservers": ["10.1.1.1"], "domain": "a<b>&c", "search": ["x.y"], "options": ["ndots:2"]}});
        let info = DeviceInfo::parse(
            br#"{"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:03:02.1"}}"#,
        );
        let device = info.expect("is valid");
        let all: Vec<_> =
            status(one, true).into_iter().map(|it| it.with_device(Some(device.clone()))).collect();
        assert_eq!(
            annotation(&all),
            r#"[{
    "name": "web/a",
    "interface": "net1",
    "ips": [
        "10.1.1.11",
        "fd00::11"
    ],
    "mac": "02:00:00:00:00:01",
    "mtu": 9000,
    "default": true,
    "dns": {
        "nameservers": [
            "10.1.1.1"
        ],
        "domain": "a\u003cb\u003e\u0026c",
        "search": [
            "x.y"
        ],
        "options": [
            "ndots:2"
        ]
    },
    "device-info": {
        "type": "pci",
        "version": "1.1.0",
        "pci": {
            "pci-address": "0000:03:02.1"
        }
    },
    "gateway": [
        "10.1.1.1",
        "fd00::1"
    ]
}]"#
        );
        let two = json!({"interfaces": [{"name": "a", "sandbox": "/n", "mtu": 1400}, {"name": "b", "sandbox": "/n"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.1"}]});
        assert_eq!(
            annotation(&status(two, false)),
            r#"[{
    "name": "web/a",
    "interface": "a",
    "mtu": 1400,
    "dns": {},
    "gateway": [
        "10.1.1.1"
    ]
},{
    "name": "web/a",
    "interface": "b",
    "dns": {},
    "gateway": [
        "10.1.1.1"
    ]
}]"#
        );
        // Nothing in the pod: of one interface an entry without it, of several none.
        let outside = json!({"interfaces": [{"name": "veth1", "mac": "02:00:00:00:00:01"}], "ips": [{"address": "10.0.0.1/24"}]});
        assert_eq!(
            annotation(&status(outside, false)),
            "[{\n    \"name\": \"web/a\",\n    \"ips\": [\n        \"10.0.0.1\"\n    ],\n    \"dns\": {}\n}]"
        );
        assert_eq!(annotation(&status(json!({"interfaces": [{"name": "x"}, {"name": "y"}]}), true)), "[]");
    }

    #[test]
    fn a_default_route_without_a_gateway_names_that_of_the_address() {
        let text = |value| annotation(&NetworkStatus::of_result(&result(value), "n", false));
        let routed = text(json!({"ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}]}));
        assert!(routed.contains("\"gateway\": [\n        \"10.0.0.1\"\n    ]"), "{routed}");
        let link = text(json!({"ips": [{"address": "10.0.0.5/24"}], "routes": [{"dst": "0.0.0.0/0"}]}));
        assert!(!link.contains("gateway"), "{link}");
    }

    #[test]
    fn every_interface_in_the_pod_is_listed_and_one_is_the_default() {
        let two = json!({"interfaces": [{"name": "br0"}, {"name": "a", "sandbox": "/n"}, {"name": "b", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.5/24", "interface": 1}, {"address": "10.0.1.5/24", "gateway": "10.0.1.1", "interface": 2},
                    {"address": "10.0.2.5/24"}, {"address": "10.0.3.5/24", "interface": 0}]});
        let all = NetworkStatus::of_result(&result(two), "n", true);
        let shown: Vec<_> =
            all.iter().map(|it| (it.interface().unwrap(), it.is_default, it.ips().len())).collect();
        assert_eq!(shown, [("a", false, 1), ("b", true, 2)]);
        let plain = json!({"interfaces": [{"name": "a", "sandbox": "/n"}, {"name": "b", "sandbox": "/n"}]});
        let all = NetworkStatus::of_result(&result(plain), "n", true);
        assert_eq!(all.iter().map(|it| it.is_default).collect::<Vec<_>>(), [true, false]);
    }
}
