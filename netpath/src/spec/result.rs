//! Results of every version of CNI. Inside, a result has the shape of 1.1.0.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::address::{parse_ip, parse_network};
use super::error::ConfError;
use super::json::View;
use super::version::CniVersion;

/// What an ADD made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces, those of the host included.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes in the sandbox.
    pub routes: Vec<Route>,
    /// Name resolution, for the caller to make use of.
    pub dns: Dns,
}

/// An interface that an ADD made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as the plugin that made it wrote it.
    pub mac: Option<String>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Path of the network namespace it is in; none for the host's.
    pub sandbox: Option<String>,
    /// Path of a socket that belongs to it.
    pub socket_path: Option<String>,
    /// PCI address of its device.
    pub pci_id: Option<String>,
}

/// An address that an ADD gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// The address with the prefix length of its network.
    pub address: IpNetwork,
    /// The gateway of its network.
    pub gateway: Option<IpAddr>,
    /// Index into the result's interfaces. It comes from other plugins too: it may point nowhere.
    pub interface: Option<usize>,
}

/// A route that an ADD set, or that an IPAM asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop; without one it is the gateway of the first address of the same family.
    pub gw: Option<IpAddr>,
    /// MTU of the path.
    pub mtu: Option<u32>,
    /// Maximal segment size to advertise.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope, as the kernel numbers it.
    pub scope: Option<u8>,
}

/// Name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of servers.
    pub nameservers: Vec<String>,
    /// Domain of short names.
    pub domain: Option<String>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a result. `version` is that of the configuration; the result's own `cniVersion` wins over it.
    pub fn parse(version: CniVersion, value: &Value) -> Result<Self, ConfError> {
        Self::read("result", version, value)
    }

    /// Reads the result at `path`.
    pub(super) fn read(path: &str, version: CniVersion, value: &Value) -> Result<Self, ConfError> {
        let view = View::at(path, value)?;
        let version = match view.text("cniVersion")? {
            Some(text) => CniVersion::parse(text)?,
            None => version,
        };
        let dns = view.object("dns")?.map(|dns| Dns::read(&dns)).transpose()?.unwrap_or_default();
        if version < CniVersion::V0_3_0 {
            let mut result = Self { dns, ..Self::default() };
            for key in ["ip4", "ip6"] {
                if let Some(family) = view.object(key)? {
                    result.ips.push(IpConfig::read(&family, "ip")?);
                    result.routes.extend(routes(&family)?);
                }
            }
            return Ok(result);
        }
        let read_ip = |ip: &View<'_>| IpConfig::read(ip, "address");
        Ok(Self {
            interfaces: view.objects("interfaces")?.iter().map(Interface::read).collect::<Result<_, _>>()?,
            ips: view.objects("ips")?.iter().map(read_ip).collect::<Result<_, _>>()?,
            routes: routes(&view)?,
            dns,
        })
    }

    /// The result in the shape of `version`, keys in the order of the standard plugins.
    ///
    /// What a version does not know is left out. 0.1 and 0.2 have one address of each family, and no result
    /// without an address.
    pub fn to_json(&self, version: CniVersion) -> Result<Value, ConfError> {
        let mut object = Object::default();
        object.put("cniVersion", Some(version.as_str()));
        if version < CniVersion::V0_3_0 {
            if self.ips.is_empty() {
                return Err(ConfError::NoAddress { version });
            }
            object.put("ip4", self.family_to_json(IpNetwork::is_ipv4));
            object.put("ip6", self.family_to_json(IpNetwork::is_ipv6));
        } else {
            object.put_list("interfaces", self.interfaces.iter().map(|it| it.to_json(version)));
            object.put_list("ips", self.ips.iter().map(|it| it.to_json(version)));
            object.put_list("routes", self.routes.iter().map(Route::to_json));
        }
        object.put("dns", Some(self.dns.to_json()).filter(|_| !self.dns.is_empty()));
        Ok(object.into_value())
    }

    /// The first address of a family and the family's routes, as 0.1 and 0.2 have them.
    fn family_to_json(&self, is_of_family: impl Fn(&IpNetwork) -> bool) -> Option<Value> {
        let ip = self.ips.iter().find(|ip| is_of_family(&ip.address))?;
        let mut object = Object::default();
        object.put("ip", Some(ip.address.to_string()));
        object.put("gateway", ip.gateway.map(|it| it.to_string()));
        let routes = self.routes.iter().filter(|route| is_of_family(&route.dst));
        object.put_list("routes", routes.map(|route| Route::new(route.dst, route.gw).to_json()));
        Some(object.into_value())
    }
}

impl Interface {
    fn read(view: &View<'_>) -> Result<Self, ConfError> {
        Ok(Self {
            name: view.owned("name")?.unwrap_or_default(),
            mac: view.owned("mac")?,
            mtu: view.nonzero("mtu")?,
            sandbox: view.owned("sandbox")?,
            socket_path: view.owned("socketPath")?,
            pci_id: view.owned("pciID")?,
        })
    }

    fn to_json(&self, version: CniVersion) -> Value {
        let mut object = Object::default();
        object.put("name", Some(self.name.as_str()));
        object.put("mac", self.mac.as_deref());
        let since_1_0 = CniVersion::V1_0_0 <= version;
        object.put("mtu", self.mtu.filter(|_| since_1_0));
        object.put("sandbox", self.sandbox.as_deref());
        object.put("socketPath", self.socket_path.as_deref().filter(|_| since_1_0));
        object.put("pciID", self.pci_id.as_deref().filter(|_| since_1_0));
        object.into_value()
    }
}

impl IpConfig {
    fn read(view: &View<'_>, address: &str) -> Result<Self, ConfError> {
        Ok(Self {
            address: required_network(view, address)?,
            gateway: view.parsed("gateway", parse_ip)?,
            interface: view.number("interface")?,
        })
    }

    fn to_json(&self, version: CniVersion) -> Value {
        let mut object = Object::default();
        let family = if self.address.is_ipv4() { "4" } else { "6" };
        object.put("version", Some(family).filter(|_| version < CniVersion::V1_0_0));
        object.put("interface", self.interface);
        object.put("address", Some(self.address.to_string()));
        object.put("gateway", self.gateway.map(|it| it.to_string()));
        object.into_value()
    }
}

impl Route {
    /// A route with nothing but destination and next hop.
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    fn read(view: &View<'_>) -> Result<Self, ConfError> {
        Ok(Self {
            dst: required_network(view, "dst")?,
            gw: view.parsed("gw", parse_ip)?,
            mtu: view.nonzero("mtu")?,
            advmss: view.nonzero("advmss")?,
            priority: view.nonzero("priority")?,
            table: view.number("table")?,
            scope: view.number("scope")?,
        })
    }

    fn to_json(&self) -> Value {
        let mut object = Object::default();
        object.put("dst", Some(self.dst.to_string()));
        object.put("gw", self.gw.map(|it| it.to_string()));
        object.put("mtu", self.mtu);
        object.put("advmss", self.advmss);
        object.put("priority", self.priority);
        object.put("table", self.table);
        object.put("scope", self.scope);
        object.into_value()
    }
}

/// The `routes` of an object: of a result, of an address of 0.1 and 0.2, of an IPAM.
pub(super) fn routes(view: &View<'_>) -> Result<Vec<Route>, ConfError> {
    view.objects("routes")?.iter().map(Route::read).collect()
}

fn required_network(view: &View<'_>, key: &str) -> Result<IpNetwork, ConfError> {
    view.parsed(key, parse_network)?.ok_or_else(|| ConfError::Missing {
        field: view.path_of(key),
        fix: "write an address with its prefix length, such as 10.12.34.5/24",
    })
}

impl Dns {
    /// Whether nothing is said about name resolution.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn read(view: &View<'_>) -> Result<Self, ConfError> {
        let list = |key| -> Result<Vec<String>, ConfError> {
            Ok(view.texts(key)?.into_iter().map(|(_, text)| text.to_owned()).collect())
        };
        Ok(Self {
            nameservers: list("nameservers")?,
            domain: view.owned("domain")?,
            search: list("search")?,
            options: list("options")?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut object = Object::default();
        object.put_list("nameservers", self.nameservers.iter().map(String::as_str));
        object.put("domain", self.domain.as_deref());
        object.put_list("search", self.search.iter().map(String::as_str));
        object.put_list("options", self.options.iter().map(String::as_str));
        object.into_value()
    }
}

/// A JSON object under construction that leaves out what is empty, as Go's `omitempty` does.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value.into());
        }
    }

    fn put_list<T: Into<Value>>(&mut self, key: &str, items: impl Iterator<Item = T>) {
        let items: Vec<Value> = items.map(Into::into).collect();
        self.put(key, Some(items).filter(|items| !items.is_empty()));
    }

    fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

#[cfg(test)]
mod tests;
