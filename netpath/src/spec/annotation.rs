//! What a pod asks for: the network selection annotation in its short and its JSON form.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::address::{RequestedIp, parse_ip};
use super::error::{ConfError, excerpt};
use super::json::{View, check_depth, elements, parse_value};
use super::names::{IfName, Mac};

/// Annotation of a pod: the networks it wants besides the default one.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Annotation of a pod: the network it wants in place of the default one.
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";

/// One network that a pod asks for, and how it wants to be attached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// `name` of the NAD.
    pub name: String,
    /// `namespace` of the NAD: the pod's own where none is written.
    pub namespace: String,
    /// `interface`
    pub ifname: Option<IfName>,
    /// `ips`
    pub ips: Vec<RequestedIp>,
    /// `mac`
    pub mac: Option<Mac>,
    /// `default-route`: the gateways; an empty list keeps what the network itself configures, and takes the
    /// default routes of all others away.
    pub default_route: Option<Vec<IpAddr>>,
    /// `infiniband-guid`
    pub infiniband_guid: Option<String>,
    /// `portMappings`, each valid.
    pub port_mappings: Option<Value>,
    /// `bandwidth`, valid and with all four of its keys.
    pub bandwidth: Option<Value>,
    /// `cni-args`
    pub cni_args: Option<Map<String, Value>>,
    /// `deviceID`
    pub device_id: Option<String>,
    /// `ipam-claim-reference`
    pub ipam_claim: Option<String>,
}

/// The networks that the annotation `text` asks for, in its order; the empty text asks for none.
///
/// `namespace` is the pod's.
pub fn parse_networks(text: &str, namespace: &str) -> Result<Vec<Selection>, ConfError> {
    parse(NETWORKS, text, namespace)
}

/// The network that the annotation `text` puts in place of the default one.
///
/// `namespace` is that in which cluster-wide networks are looked for.
pub fn parse_default_network(text: &str, namespace: &str) -> Result<Option<Selection>, ConfError> {
    let mut all = parse(DEFAULT_NETWORK, text, namespace)?;
    match all.len() {
        0 | 1 => Ok(all.pop()),
        _ => Err(ConfError::field(DEFAULT_NETWORK, text, "a pod has one default network: write one name")),
    }
}

/// `[namespace/]name[@interface]`, as lists of networks have it. `field` is for errors.
pub fn parse_reference(field: &str, text: &str, namespace: &str) -> Result<Selection, ConfError> {
    let wrong = |rule: &'static str| ConfError::field(field, text, rule);
    let mut parts = text.split('/');
    let (own_namespace, rest) = match (parts.next(), parts.next(), parts.next()) {
        (Some(rest), None, _) => (None, rest),
        (Some(namespace), Some(rest), None) => (Some(namespace.trim()), rest),
        _ => return Err(wrong("at most one `/` is allowed: write namespace/name@interface")),
    };
    let mut parts = rest.split('@');
    let (name, ifname) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => (name.trim(), None),
        (Some(name), Some(ifname), None) => (name.trim(), Some(ifname.trim())),
        _ => return Err(wrong("at most one `@` is allowed: write namespace/name@interface")),
    };
    if name.is_empty() {
        return Err(wrong(
            "a name is missing: write namespace/name@interface, with a comma between two of them",
        ));
    }
    if [Some(name), own_namespace, ifname].into_iter().flatten().any(|part| !is_label(part)) {
        return Err(wrong(
            "namespace, name and interface have lower-case letters, digits and `-` only, and begin and end with a \
             letter or digit: write namespace/name@interface",
        ));
    }
    Ok(Selection {
        name: name.to_owned(),
        namespace: own_namespace.unwrap_or(namespace).to_owned(),
        ifname: ifname.map(|ifname| IfName::parse(field, ifname)).transpose()?,
        ..Selection::default()
    })
}

/// A text with any of `[`, `{`, `"` is JSON, everything else a list of references with commas between them.
fn parse(key: &'static str, text: &str, namespace: &str) -> Result<Vec<Selection>, ConfError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if !text.contains(['[', '{', '"']) {
        return text.split(',').map(|item| parse_reference(key, item.trim(), namespace)).collect();
    }
    let value = parse_value(text.as_bytes()).map_err(|source| ConfError::Annotation {
        key,
        text: excerpt(text.to_owned()),
        source,
    })?;
    if value.is_object() {
        return Err(ConfError::field(key, text, "write a list, also for one network: [{\"name\": …}]"));
    }
    let items = elements(key, &value)?;
    for (path, item) in &items {
        View::at(path, item)?
            .map()
            .iter()
            .try_for_each(|(name, value)| check_depth(&format!("{path}.{name}"), value, 2))?;
    }
    items.into_iter().map(|(path, value)| element(&View::at(path, value)?, namespace)).collect()
}

fn element(view: &View<'_>, namespace: &str) -> Result<Selection, ConfError> {
    let name = view.owned("name")?.ok_or_else(|| ConfError::Missing {
        field: view.path_of("name"),
        fix: "write the name of a NetworkAttachmentDefinition",
    })?;
    let ips = ips(view)?;
    let ipam_claim = view.owned("ipam-claim-reference")?;
    if let (Some(claim), false) = (&ipam_claim, ips.is_empty()) {
        return Err(ConfError::field(
            view.path_of("ipam-claim-reference"),
            claim.as_str(),
            "a claim has its own addresses: write it without `ips`",
        ));
    }
    let ifname = match view.parsed("interface", IfName::parse)? {
        None => view.parsed("interfaceRequest", IfName::parse)?,
        some => some,
    };
    Ok(Selection {
        name,
        namespace: view.owned("namespace")?.unwrap_or_else(|| namespace.to_owned()),
        ifname,
        ips,
        mac: view.parsed("mac", Mac::parse)?,
        default_route: default_route(view)?,
        infiniband_guid: view.parsed("infiniband-guid", guid)?,
        port_mappings: port_mappings(view)?,
        bandwidth: bandwidth(view)?,
        cni_args: match view.get("cni-args") {
            None => None,
            Some(Value::Object(map)) => Some(map.clone()),
            Some(other) => {
                return Err(View::at(view.path_of("cni-args"), other).err().unwrap_or_else(|| {
                    ConfError::field(view.path_of("cni-args"), other.to_string(), "write a JSON object")
                }));
            }
        },
        device_id: view.owned("deviceID")?,
        ipam_claim,
    })
}

fn ips(view: &View<'_>) -> Result<Vec<RequestedIp>, ConfError> {
    if let Some(Value::String(text)) = view.get("ips") {
        let rule = "write a list, also for one address: [\"10.12.34.5/24\"]";
        return Err(ConfError::field(view.path_of("ips"), text.as_str(), rule));
    }
    view.texts("ips")?.into_iter().map(|(path, text)| RequestedIp::parse(&path, text)).collect()
}

fn default_route(view: &View<'_>) -> Result<Option<Vec<IpAddr>>, ConfError> {
    if let Some(Value::String(text)) = view.get("default-route") {
        let rule = "write a list, also for one gateway: [\"10.12.34.254\"]";
        return Err(ConfError::field(view.path_of("default-route"), text.as_str(), rule));
    }
    if view.get("default-route").is_none() {
        return Ok(None);
    }
    let gateways = view.texts("default-route")?;
    gateways.into_iter().map(|(path, text)| parse_ip(&path, text)).collect::<Result<_, _>>().map(Some)
}

fn port_mappings(view: &View<'_>) -> Result<Option<Value>, ConfError> {
    if view.get("portMappings").is_none() {
        return Ok(None);
    }
    let mut mappings = Vec::new();
    for entry in view.objects("portMappings")? {
        let mut mapping = Map::new();
        for key in ["hostPort", "containerPort"] {
            let port = entry.number::<u32>(key)?.unwrap_or_default();
            if u16::try_from(port).is_err() {
                return Err(ConfError::field(
                    entry.path_of(key),
                    port.to_string(),
                    "a port is at most 65535",
                ));
            }
            mapping.insert(key.to_owned(), port.into());
        }
        for key in ["protocol", "hostIP"] {
            if let Some(text) = entry.text(key)? {
                mapping.insert(key.to_owned(), text.into());
            }
        }
        mappings.push(Value::Object(mapping));
    }
    Ok(Some(mappings.into()))
}

fn bandwidth(view: &View<'_>) -> Result<Option<Value>, ConfError> {
    let Some(entry) = view.object("bandwidth")? else { return Ok(None) };
    let mut bandwidth = Map::new();
    for key in ["ingressRate", "ingressBurst", "egressRate", "egressBurst"] {
        bandwidth.insert(key.to_owned(), entry.number::<usize>(key)?.unwrap_or_default().into());
    }
    Ok(Some(Value::Object(bandwidth)))
}

/// Eight bytes, as Go's `net.ParseMAC` reads them.
fn guid(field: &str, value: &str) -> Result<String, ConfError> {
    let grouped = |separator: char, width: usize, count: usize| {
        let groups: Vec<&str> = value.split(separator).collect();
        let is_hex = |group: &&str| group.len() == width && group.bytes().all(|b| b.is_ascii_hexdigit());
        groups.len() == count && groups.iter().all(is_hex)
    };
    if grouped(':', 2, 8) || grouped('-', 2, 8) || grouped('.', 4, 4) {
        return Ok(value.to_owned());
    }
    Err(ConfError::field(field, value, "write a GUID as eight bytes: 00:11:22:33:44:55:66:77"))
}

/// A label as RFC 1123 has it, of whatever length.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.bytes().all(|b| inner(b) || b == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().last().is_some_and(inner)
}

#[cfg(test)]
mod tests;
