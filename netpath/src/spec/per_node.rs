//! `ipam.perNode`: one network whose nodes give addresses of ranges of their own.
//!
//! host-local knows the node that it runs on and no other, so with one range for all of them two nodes give one address.

use serde_json::{Map, Value};

use super::error::ConfError;
use super::json::View;
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
        let entries = std::cell::RefCell::new(all.into_iter());
        Ok(self.map_plugins(|raw| {
            let entry = entries.borrow_mut().next().flatten();
            let (Some(entry), Some(ipam)) = (entry, raw.get_mut("ipam").and_then(Value::as_object_mut))
            else {
                return;
            };
            ipam.remove(KEY);
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
    if ipam.text("subnet")?.is_none() {
        return Err(ConfError::Missing {
            field: ipam.path_of("subnet"),
            fix: "perNode splits the one range that `subnet` stands for: write it instead of `ranges`",
        });
    }
    let names = || nodes.map().keys().cloned().collect::<Vec<_>>().join(", ");
    let own = nodes.object(node)?.ok_or_else(|| {
        let rule = format!("node {node} has no range: give it one, as {} have", names());
        ConfError::field(ipam.path_of(KEY), names(), rule)
    })?;
    if let Some(key) = own.map().keys().find(|key| !KEYS.contains(&key.as_str())) {
        let rule = format!("write {} alone: the rest is one for all nodes", KEYS.join(" and "));
        return Err(ConfError::field(own.path_of(key), "…", rule));
    }
    Ok(own.map().clone())
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
        let ranges = error(|ipam| {
            ipam.as_object_mut().expect("object").remove("subnet");
        });
        assert!(ranges.starts_with("ipam.subnet is missing"), "{ranges}");
        let alone = refuse(lab().as_object().expect("object")).expect_err("is refused").to_string();
        assert!(alone.starts_with("ipam.perNode"), "{alone}");
        assert!(refuse(json!({"ipam": {"type": "host-local"}}).as_object().expect("object")).is_ok());
    }
}
