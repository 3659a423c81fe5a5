//! `ipam.perNode`: one network whose nodes give addresses of ranges of their own.
//!
//! host-local knows the node that it runs on and no other, so with one range for all of them two nodes give one address.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::error::ConfError;
use super::json::{View, is_same_key};
use super::nad::NetworkConf;

const KEY: &str = "perNode";
/// What an entry may say. The subnet is the network's: zones are made of it, on every node alike.
const KEYS: [&str; 2] = ["rangeStart", "rangeEnd"];

impl NetworkConf {
    /// The network as it is on a node: of `ipam.perNode` the entry of that name takes the place of the range's ends.
    pub fn for_node(self, node: impl Fn() -> String) -> Result<Self, ConfError> {
        let mut all = Vec::new();
        for plugin in &self.plugins {
            let view = View::root(plugin.raw());
            let Some(ipam) = view.object("ipam")? else {
                all.push(None);
                continue;
            };
            let entry = match ipam.object(KEY)? {
                Some(nodes) => Some(entry(&ipam, &nodes, &node())?),
                None => None,
            };
            all.push(entry);
        }
        if all.iter().all(Option::is_none) {
            return Ok(self);
        }
        let mut entries = all.into_iter();
        Ok(self.map_plugins(|raw| {
            let entry = entries.next().flatten();
            // Plugins that are written in Go take a key in any case.
            let ipam = raw.iter_mut().find(|(key, _)| is_same_key(key, "ipam")).map(|(_, ipam)| ipam);
            let (Some(entry), Some(ipam)) = (entry, ipam.and_then(Value::as_object_mut)) else { return };
            ipam.retain(|key, _| !is_same_key(key, KEY) && !KEYS.iter().any(|own| is_same_key(key, own)));
            ipam.extend(entry);
        }))
    }
}

/// Refuses a range per node where nobody has chosen one: all nodes would give the same addresses.
pub fn refuse(raw: &Map<String, Value>) -> Result<(), ConfError> {
    let view = View::root(raw);
    match view.object("ipam")?.filter(|ipam| ipam.get(KEY).is_some()) {
        Some(ipam) => Err(ConfError::field(
            ipam.path_of(KEY),
            "…",
            "it is chosen by netpath as the plugin of all networks (`clusterNetwork`): called by itself, write this node's \
             rangeStart and rangeEnd",
        )),
        None => Ok(()),
    }
}

fn entry(ipam: &View<'_>, nodes: &View<'_>, node: &str) -> Result<Map<String, Value>, ConfError> {
    if ipam.text("type")? != Some("host-local") {
        return Err(ConfError::field(
            ipam.path_of("type"),
            ipam.text("type")?.unwrap_or_default(),
            "perNode splits the range of host-local alone: other plugins know of other nodes",
        ));
    }
    let subnet = ipam.parsed("subnet", prefix)?.ok_or_else(|| ConfError::Missing {
        field: ipam.path_of("subnet"),
        fix: "perNode splits the one range that `subnet` stands for",
    })?;
    if ipam.get("ranges").is_some() {
        let rule = "perNode splits the one range that `subnet` stands for: leave `ranges` out";
        return Err(ConfError::field(ipam.path_of("ranges"), "…", rule));
    }
    let mut own = None;
    let mut all: Vec<(&str, (IpAddr, IpAddr))> = Vec::new();
    for name in nodes.map().keys() {
        let Some(entry) = nodes.object(name)? else { continue };
        let range = ends(&entry, subnet)?;
        let overlaps = |(_, (start, end)): &&(&str, (IpAddr, IpAddr))| *start <= range.1 && range.0 <= *end;
        if let Some((other, _)) = all.iter().find(overlaps) {
            let rule = format!("it has addresses that {other} has too: both nodes would give them");
            return Err(ConfError::field(nodes.path_of(name), format!("{}-{}", range.0, range.1), rule));
        }
        all.push((name, range));
        if name == node {
            own = Some(range);
        }
    }
    let (start, end) = own.ok_or_else(|| {
        let names = all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let rule = format!("node {node} has no range: give it one, as these have");
        ConfError::field(ipam.path_of(KEY), names, rule)
    })?;
    let ends = [("rangeStart", start), ("rangeEnd", end)];
    Ok(ends.into_iter().map(|(key, address)| (key.to_owned(), address.to_string().into())).collect())
}

/// The range of one node.
fn ends(entry: &View<'_>, subnet: IpNetwork) -> Result<(IpAddr, IpAddr), ConfError> {
    if let Some(key) = entry.map().keys().find(|key| !KEYS.iter().any(|own| is_same_key(key, own))) {
        let rule = format!("write {} alone: the rest is one for all nodes", KEYS.join(" and "));
        return Err(ConfError::field(entry.path_of(key), "…", rule));
    }
    let [start, end] = KEYS.map(|key| {
        let address = entry.parsed(key, address)?.ok_or_else(|| ConfError::Missing {
            field: entry.path_of(key),
            fix: "write the first and the last address of the node, as rangeStart and rangeEnd",
        })?;
        match subnet.contains(address) {
            true => Ok(address),
            false => {
                Err(ConfError::field(entry.path_of(key), address.to_string(), format!("is not in {subnet}")))
            }
        }
    });
    let (start, end) = (start?, end?);
    match start <= end {
        true => Ok((start, end)),
        false => {
            let rule = format!("lies before the start of the range, {start}");
            Err(ConfError::field(entry.path_of(KEYS[1]), end.to_string(), rule))
        }
    }
}

fn address(field: &str, value: &str) -> Result<IpAddr, ConfError> {
    value.parse().map_err(|_| ConfError::field(field, value, "write an address, such as 10.12.34.200"))
}

fn prefix(field: &str, value: &str) -> Result<IpNetwork, ConfError> {
    value.parse().map_err(|_| ConfError::field(field, value, "write a subnet, such as 10.12.34.0/24"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn on(node: &str, conf: &Value) -> Result<NetworkConf, String> {
        let conf = NetworkConf::parse(conf.to_string().as_bytes(), Some("mv")).expect("is valid");
        conf.for_node(|| node.to_owned()).map_err(|error| error.to_string())
    }

    fn lab() -> Value {
        json!({"cniVersion": "1.0.0", "name": "mv", "type": "macvlan", "master": "enp0s8",
            "ipam": {"type": "host-local", "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.1", "perNode": {
                "worker01": {"rangeStart": "10.12.34.200", "rangeEnd": "10.12.34.209"},
                "worker02": {"rangeStart": "10.12.34.210", "rangeEnd": "10.12.34.220"}}}})
    }

    #[test]
    fn each_node_has_its_own_range() {
        let conf = on("worker02", &lab()).expect("it has a range");
        let expected = json!({"type": "host-local", "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.210",
            "rangeEnd": "10.12.34.220"});
        assert_eq!((&conf.plugins[0].raw()["ipam"], &conf.raw()["ipam"]), (&expected, &expected));
        let list = json!({"cniVersion": "1.0.0", "name": "l", "plugins": [lab(), {"type": "tuning"}]});
        let conf = on("worker01", &list).expect("it has a range");
        assert_eq!(conf.raw()["plugins"][0]["ipam"]["rangeEnd"], "10.12.34.209");
        // In another case it is the same to who executes it.
        let mut shouted = lab();
        shouted["IPAM"] = shouted.as_object_mut().expect("object").remove("ipam").expect("there");
        let conf = on("worker02", &shouted).expect("it has a range");
        assert_eq!(conf.plugins[0].raw()["IPAM"], expected);
        let plain = json!({"name": "p", "type": "macvlan", "ipam": {"type": "dhcp"}});
        assert_eq!(on("worker09", &plain).expect("has none").raw()["ipam"], json!({"type": "dhcp"}));
    }

    #[test]
    fn what_would_give_an_address_twice_is_refused() {
        let error = |change: fn(&mut Value)| {
            let mut conf = lab();
            change(&mut conf["ipam"]);
            on("worker03", &conf).expect_err("is refused")
        };
        assert!(error(|_| ()).contains("node worker03 has no range"), "{}", error(|_| ()));
        assert!(error(|ipam| ipam["type"] = json!("whereabouts")).contains("host-local alone"));
        let keys = error(|ipam| ipam["perNode"]["worker03"] = json!({"subnet": "10.0.0.0/8"}));
        assert!(keys.starts_with("ipam.perNode.worker03.subnet"), "{keys}");
        for (entry, expected) in [
            (json!({}), "ipam.perNode.worker03.rangeStart is missing"),
            (json!({"rangeStart": "10.12.34.1"}), "ipam.perNode.worker03.rangeEnd is missing"),
            (
                json!({"rangeStart": "10.12.34.9", "rangeEnd": "10.12.34.1"}),
                "ipam.perNode.worker03.rangeEnd `10.12.34.1`",
            ),
            (
                json!({"rangeStart": "10.12.35.1", "rangeEnd": "10.12.35.9"}),
                "ipam.perNode.worker03.rangeStart `10.12.35.1`",
            ),
            (
                json!({"rangeStart": "10.12.34.205", "rangeEnd": "10.12.34.205"}),
                "ipam.perNode.worker03 `10.12.34.205",
            ),
        ] {
            let mut conf = lab();
            conf["ipam"]["perNode"]["worker03"] = entry;
            let error = on("worker03", &conf).expect_err("is refused");
            assert!(error.starts_with(expected), "{error}");
        }
        let both = error(|ipam| ipam["ranges"] = json!([]));
        assert!(both.starts_with("ipam.ranges"), "{both}");
        let ranges = error(|ipam| {
            ipam.as_object_mut().expect("object").remove("subnet");
        });
        assert!(ranges.starts_with("ipam.subnet is missing"), "{ranges}");
        let alone = refuse(lab().as_object().expect("object")).expect_err("is refused").to_string();
        assert!(alone.starts_with("ipam.perNode"), "{alone}");
        assert!(refuse(json!({"ipam": {"type": "host-local"}}).as_object().expect("object")).is_ok());
    }
}
