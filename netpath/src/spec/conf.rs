//! Network configurations: what every plugin finds on stdin.

mod macvlan;

use std::path::Path;

use serde_json::{Map, Value};

use super::address::RequestedIp;
use super::error::ConfError;
use super::ipam::{self, IpamConf, RangeSet};
use super::json::{View, elements, parse_object};
use super::names::{ContainerId, IfName, Mac, NetworkName};
use super::result::{CniResult, Dns};
use super::version::CniVersion;
pub use macvlan::{MacvlanConf, MacvlanMode};

/// A network configuration.
///
/// What it says of the type in question alone is read from `raw`: [`MacvlanConf`] and the zone.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// The whole configuration, unknown keys included. Read it by a [`View`], which ignores case.
    pub raw: Map<String, Value>,
    /// `cniVersion`
    pub cni_version: CniVersion,
    /// `name`
    pub name: NetworkName,
    /// `type`: the plugin, which is the file name of a program.
    pub kind: String,
    /// `prevResult`: what the plugins before this one made, or the ADD before a CHECK or DEL.
    pub prev_result: Option<CniResult>,
    /// `runtimeConfig`
    pub runtime: RuntimeConfig,
    /// `args.cni`
    pub args_cni: ArgsCni,
    /// `dns`
    pub dns: Dns,
    /// `ipam` as the configuration alone has it. ADD and CHECK want [`IpamConf::from_conf`], which knows
    /// `CNI_ARGS`; here a host-local without any range is no error, since GC and STATUS have no
    /// `runtimeConfig` that could name them.
    pub ipam: IpamConf,
    /// `cni.dev/valid-attachments`: what GC must leave alone. `None` is no list, from which nothing follows;
    /// an empty list says that every attachment is gone.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// `disableGC`: somebody else uses this network's name too, GC removes nothing.
    pub disable_gc: bool,
}

/// Whether IPv4 addresses are looked for on the network before they are used (RFC 5227).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acd {
    /// They are taken as IPAM gives them.
    Off,
    /// One that another interface has, or is about to take, is not used.
    On,
}

/// What the runtime passes for capabilities that the configuration declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// `mac`
    pub mac: Option<Mac>,
    /// `ips`
    pub ips: Vec<RequestedIp>,
    /// `ipRanges`
    pub ip_ranges: Vec<RangeSet>,
}

/// `args.cni`: requests in the older way, from the configuration or from the pod's annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArgsCni {
    /// `mac`; the macvlan plugin does not honour it.
    pub mac: Option<Mac>,
    /// `ips`
    pub ips: Vec<RequestedIp>,
}

/// An attachment that still exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValidAttachment {
    /// `containerID`
    pub container_id: ContainerId,
    /// `ifname`
    pub ifname: IfName,
}

impl NetConf {
    /// Parses a configuration for any command but VERSION.
    pub fn parse(stdin: &[u8]) -> Result<Self, ConfError> {
        let raw = parse_object(stdin)?;
        let view = View::root(&raw);
        let name = required(&view, "name", "give the network a name", NetworkName::parse)?;
        let cni_version = CniVersion::parse(view.text("cniVersion")?.unwrap_or_default())?;
        let kind = required(&view, "type", "name the plugin, such as macvlan", plugin_name)?;
        let runtime = view.object("runtimeConfig")?.map(|it| RuntimeConfig::read(&it)).transpose()?;
        let runtime = runtime.unwrap_or_default();
        let args_cni = match view.object("args")?.map(|args| args.object("cni")).transpose()?.flatten() {
            Some(cni) => ArgsCni::read(&cni)?,
            None => ArgsCni::default(),
        };
        Ok(Self {
            prev_result: view
                .get("prevResult")
                .map(|value| CniResult::read(&view.path_of("prevResult"), cni_version, value))
                .transpose()?,
            dns: view.object("dns")?.map(|dns| Dns::read(&dns)).transpose()?.unwrap_or_default(),
            ipam: ipam::read(&view, cni_version, &runtime, &args_cni)?,
            valid_attachments: valid_attachments(&view)?,
            disable_gc: view.bool("disableGC")?,
            cni_version,
            name,
            kind,
            runtime,
            args_cni,
            raw,
        })
    }

    /// The version in which to answer VERSION, and in which to report a configuration that cannot be parsed.
    ///
    /// It never fails: a caller that asks for our versions, or is told of an error, may speak none of them.
    pub fn parse_version(stdin: &[u8]) -> CniVersion {
        let version = |raw: Map<String, Value>| match View::root(&raw).text("cniVersion") {
            Ok(Some(text)) => CniVersion::parse(text).ok(),
            Ok(None) | Err(_) => None,
        };
        parse_object(stdin).ok().and_then(version).unwrap_or(CniVersion::LATEST)
    }

    /// `zone`, whatever the case of its key: a zone that is overlooked would be a zone that is open.
    pub fn zone(&self) -> Option<&Value> {
        View::root(&self.raw).get("zone")
    }

    /// `acd`: address conflict detection; off where it is not given.
    pub fn acd(&self) -> Result<Acd, ConfError> {
        Ok(if View::root(&self.raw).bool("acd")? { Acd::On } else { Acd::Off })
    }
}

impl RuntimeConfig {
    fn read(view: &View<'_>) -> Result<Self, ConfError> {
        Ok(Self {
            mac: view.parsed("mac", Mac::parse)?,
            ips: requested_ips(view)?,
            ip_ranges: ipam::range_sets(view, "ipRanges")?,
        })
    }
}

impl ArgsCni {
    fn read(view: &View<'_>) -> Result<Self, ConfError> {
        Ok(Self { mac: view.parsed("mac", Mac::parse)?, ips: requested_ips(view)? })
    }
}

fn requested_ips(view: &View<'_>) -> Result<Vec<RequestedIp>, ConfError> {
    view.texts("ips")?.into_iter().map(|(path, text)| RequestedIp::parse(&path, text)).collect()
}

/// Both keys count: the specification had the shorter one by mistake, and libcni sends both. An attachment
/// that only one of them names is valid, since leaving it alone can be made up for.
fn valid_attachments(view: &View<'_>) -> Result<Option<Vec<ValidAttachment>>, ConfError> {
    let mut all: Option<Vec<ValidAttachment>> = None;
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let Some(value) = view.get(key) else { continue };
        let list = all.get_or_insert_default();
        for (path, item) in elements(key, value)? {
            let item = View::at(path, item)?;
            let attachment = ValidAttachment {
                container_id: required(&item, "containerID", "name the container", ContainerId::parse)?,
                ifname: required(&item, "ifname", "name the interface in the sandbox", IfName::parse)?,
            };
            if !list.contains(&attachment) {
                list.push(attachment);
            }
        }
    }
    Ok(all)
}

fn required<T>(
    view: &View<'_>,
    key: &str,
    fix: &'static str,
    parse: impl FnOnce(&str, &str) -> Result<T, ConfError>,
) -> Result<T, ConfError> {
    view.parsed(key, parse)?.ok_or_else(|| ConfError::Missing { field: view.path_of(key), fix })
}

/// A plugin is found as a file in the directories of `CNI_PATH`: its name must not lead out of them.
pub(super) fn plugin_name(field: &str, value: &str) -> Result<String, ConfError> {
    if Path::new(value).file_name().is_none_or(|name| name != value) || value.contains('\0') {
        return Err(ConfError::field(field, value, "write the file name of a plugin, without a directory"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests;
