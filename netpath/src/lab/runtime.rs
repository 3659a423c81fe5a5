//! The part of a container runtime: calls the real binary, by environment and standard input.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use super::{
    error::LabError,
    nad::Network,
    world::{Host, World},
};
use crate::{
    child,
    kernel::{netns, pdeathsig::lead_group},
    root,
    spec::Mac,
    state::{Record, Records},
};

/// Kubelet's patience is minutes; here something is wrong long before.
const WITHIN: Duration = Duration::from_secs(20);

/// A pod with its interface `net1`.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) host: Host,
    /// Row of its counters.
    pub(super) endpoint: u32,
    /// Dense id of the master.
    pub(super) master: u16,
    pub(super) mac: Mac,
    record: Record,
    network: Network,
}

/// ADD of `network` for the pod `host`.
pub(super) fn add(world: &World, host: Host, network: Network) -> Result<Attached, LabError> {
    call(world, host, &network, "ADD")?;
    world.hush(host, "net1")?;
    let pod = host.name();
    let listing = Records::new(&world.root()).all()?;
    let record =
        listing.records.into_iter().find(|record| record.container_id.as_str() == container_id(host));
    let record = record.ok_or(LabError::Uncounted { pod, what: "record" })?;
    let endpoint = record.endpoint.ok_or(LabError::Uncounted { pod, what: "row in the maps" })?.id;
    let mac = record.mac.ok_or(LabError::Uncounted { pod, what: "MAC address" })?;
    let master = record.master.as_ref().and_then(|master| u16::try_from(master.id?).ok());
    let master = master.ok_or(LabError::Uncounted { pod, what: "policed master" })?;
    Ok(Attached { host, endpoint, master, mac, record, network })
}

/// DEL of what [`add`] made.
pub(super) fn del(world: &World, attached: &Attached) -> Result<(), LabError> {
    call(world, attached.host, &attached.network, "DEL")
}

impl Attached {
    /// `net1 [10.12.34.200/24] from privatezone-macvlan-conf`.
    pub(super) fn line(&self) -> String {
        let ips: Vec<_> = self.record.ips.iter().map(ToString::to_string).collect();
        format!("net1 [{}] from {}", ips.join(", "), self.network.name())
    }

    /// Interface index of its master.
    pub(super) fn master_index(&self) -> u32 {
        self.record.master.as_ref().map_or(0, |master| master.ifindex)
    }
}

fn container_id(host: Host) -> String {
    format!("lab-{}", host.name())
}

fn call(world: &World, host: Host, network: &Network, command: &'static str) -> Result<(), LabError> {
    let line = || format!("{command} of {}", network.name());
    let binary = std::env::current_exe().map_err(|source| LabError::Run { line: line(), source })?;
    let run =
        || child::run(cni(&binary, world, host, command), network.to_stdin().as_bytes(), WITHIN, lead_group);
    let output = netns::within(&world.netns(Host::Worker01), run)??;
    tracing::debug!(command, pod = host.name(), stdout = %String::from_utf8_lossy(&output.stdout), "called the plugin");
    if output.status.success() {
        return Ok(());
    }
    let said = match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(object) => {
            let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            format!("{}: {}", text("msg"), text("details"))
        }
        Err(_) => format!("no error object, {}", output.status),
    };
    Err(LabError::Plugin { command, network: network.name().to_owned(), pod: host.name(), said })
}

fn cni(binary: &Path, world: &World, host: Host, cni_command: &str) -> Command {
    let mut command = Command::new(binary);
    command
        .env(root::ENV, world.root().path())
        .env("CNI_COMMAND", cni_command)
        .env("CNI_CONTAINERID", container_id(host))
        .env("CNI_NETNS", world.netns(host))
        .env("CNI_IFNAME", "net1")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", host.name()));
    command
}
