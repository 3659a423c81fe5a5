//! Puts the pod's default routes where they are wanted, and says so in the results.

use serde_json::Value;

use super::{MetaError, PluginError, add};
use crate::{
    exec::{self, Effects},
    kernel::netlink::Route,
    plan::{self, DefaultRoute, Moved, RouteVia},
    spec::{CniVersion, json::View},
};

/// Key of a plugin's configuration: the network may take over the pod's default route without being asked to.
const OVERRIDES: &str = "overrideDefaultRoute";

/// Makes one default route of each family count, and corrects the results of those that lost theirs.
pub(super) fn settle(effects: &mut Effects, attached: &mut [add::Attached]) -> Result<(), PluginError> {
    let mut routes = effects.sandbox().routes(None)?;
    routes.retain(|route| route.dst.prefix() == 0 && route.table == Route::MAIN);
    let links = if routes.is_empty() { Vec::new() } else { effects.sandbox().links()? };
    let mut present = Vec::new();
    for route in routes {
        if let Some(link) = links.iter().find(|link| Some(link.index) == route.index) {
            present.push(DefaultRoute { ifname: link.name.clone(), route: RouteVia::from(route) });
        }
    }
    let wants: Vec<plan::Attached> = attached
        .iter()
        .map(|it| {
            let overrides = |raw| View::root(raw).bool(OVERRIDES).map_err(PluginError::from);
            let plugins = it.delegate.conf.plugins.iter();
            let overrides: Result<Vec<bool>, _> = plugins.map(|plugin| overrides(plugin.raw())).collect();
            Ok(plan::Attached {
                ifname: it.delegate.ifname.clone(),
                asked: it.delegate.selection.default_route.clone(),
                overrides: overrides?.contains(&true),
            })
        })
        .collect::<Result<_, PluginError>>()?;
    let plan = plan::default_routes(&wants, &present).map_err(MetaError::from)?;
    // Nothing of it is undone: when it fails the interfaces go, and their routes with them.
    exec::run(effects, &plan.steps, &mut exec::UndoStack::default())?;
    for (index, it) in attached.iter_mut().enumerate() {
        for moved in &plan.moved {
            correct(&mut it.result, moved, index);
        }
    }
    Ok(())
}

/// CHECK and DEL are given the result as it was left, not as the plugin printed it.
fn correct(result: &mut Value, moved: &Moved, index: usize) {
    let version = result.get("cniVersion").and_then(Value::as_str).and_then(|it| CniVersion::parse(it).ok());
    if version.is_none_or(|version| version < CniVersion::V0_3_0) {
        return;
    }
    let default = if moved.v6 { "::/0" } else { "0.0.0.0/0" };
    let is_default = |route: &Value| route.get("dst").and_then(Value::as_str) == Some(default);
    let routes = result.get_mut("routes").and_then(Value::as_array_mut);
    match (routes, moved.gateway) {
        (Some(routes), _) if index != moved.to => routes.retain(|route| !is_default(route)),
        (Some(routes), Some(gateway)) => {
            routes.retain(|route| !is_default(route));
            routes.push(serde_json::json!({"dst": default, "gw": gateway.to_string()}));
        }
        (None, Some(gateway)) if index == moved.to => {
            result["routes"] = serde_json::json!([{"dst": default, "gw": gateway.to_string()}]);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_say_who_has_the_default_route() {
        let result = json!({"cniVersion": "1.0.0", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.0.0.0/8"}]});
        let after = |index, gateway: Option<&str>, mut result: Value| {
            let moved = Moved { v6: false, to: 1, gateway: gateway.map(|it| it.parse().expect("is valid")) };
            correct(&mut result, &moved, index);
            result["routes"].clone()
        };
        assert_eq!(
            after(0, Some("10.1.0.1"), result.clone()),
            json!([{"dst": "::/0"}, {"dst": "10.0.0.0/8"}])
        );
        let moved = json!([{"dst": "::/0"}, {"dst": "10.0.0.0/8"}, {"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]);
        assert_eq!(after(1, Some("10.1.0.1"), result.clone()), moved);
        assert_eq!(after(1, None, result.clone()), result["routes"]);
        let bare = json!({"cniVersion": "1.0.0"});
        assert_eq!(after(1, Some("10.1.0.1"), bare.clone()), json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]));
        assert_eq!(after(0, Some("10.1.0.1"), bare), Value::Null);
        assert_eq!(after(1, Some("10.1.0.1"), json!({"cniVersion": "0.2.0"})), Value::Null);
    }
}
