//! Adoption: an attachment of ours that lost its row, with the pins or by an uninstall, gets one again.

use netpath_ebpf::abi::{EndpointKey, mode};

use super::{PoliceError, Wanted, content, identity, neighbours};
use crate::{
    kernel::bpf::maps::Maps,
    root::Root,
    spec::{CniArgs, IpConfig, IpamConf, Mac, NetConf},
    state::{self, Master, Phase, Record, Records},
    zone::{Zone, compile},
};

/// The finished records of living attachments whose interface sits on the link with this index.
pub(super) fn living(root: &Root, ifindex: u32) -> Result<Vec<Record>, PoliceError> {
    let boot = state::boot_id()?;
    let mut records = Records::new(root).all()?.records;
    records.retain(|record| {
        record.phase == Phase::Ready
            && record.master.as_ref().is_some_and(|master| master.ifindex == ifindex)
            && !neighbours::is_gone(record, &boot)
    });
    Ok(records)
}

/// Puts zone and row of `record` in force, as its ADD did, and writes down which row it is now.
///
/// A recorded zone that this version cannot read closes the interface: it never opens it.
pub(super) fn adopt(
    root: &Root,
    maps: &mut Maps,
    master: u16,
    mac: Mac,
    mut record: Record,
) -> Result<(), PoliceError> {
    let network = record.network.to_string();
    let zone = record.zone.as_ref().map(|zone| Zone::from_json(&zone.compiled));
    let readable = zone.as_ref().and_then(|zone| zone.as_ref().ok());
    let (ips, dhcp) = addressing(&record);
    let wanted = Wanted {
        container_id: &record.container_id,
        ifname: &record.ifname,
        network: &network,
        zone: readable,
        mac,
        ips: &ips,
        cookie: record.netns.cookie,
        dhcp,
        passthru: false,
    };
    let mut row = wanted.row()?;
    match readable {
        Some(zone) => {
            let image = compile(zone)?;
            row.zone = maps.ensure_zone(&network, image.digest(&network), &content(&image))?;
        }
        None if record.zone.is_some() => row.mode = mode::ENFORCE,
        None => {}
    }
    let row = maps.add_endpoint(EndpointKey::new(master, mac.bytes()), row)?;
    identity::enter(maps, master, &row, None)?;
    record.endpoint = Some(state::Endpoint { id: row.id, generation: row.generation });
    record.master = record.master.map(|old| Master { id: Some(master.into()), ..old });
    Ok(Records::new(root).write(&record)?)
}

/// The addresses of the record with the gateways that its configuration names, and whether they are leased.
fn addressing(record: &Record) -> (Vec<IpConfig>, bool) {
    let stdin = serde_json::Value::Object(record.conf.clone()).to_string();
    let conf =
        NetConf::parse(stdin.as_bytes()).and_then(|conf| IpamConf::from_conf(&conf, &CniArgs::default()));
    let mut gateways = Vec::new();
    let mut dhcp = false;
    match conf {
        Ok(IpamConf::HostLocal(conf)) => {
            gateways.extend(conf.ranges.iter().flat_map(|set| set.0.iter().map(|range| range.gateway)));
        }
        Ok(IpamConf::Static(conf)) => {
            gateways.extend(conf.addresses.iter().filter_map(|(_, gateway)| *gateway));
        }
        Ok(IpamConf::Delegated { kind, .. }) => dhcp = kind == "dhcp",
        Ok(IpamConf::None) | Err(_) => {}
    }
    let with_gateway = |address: &ipnetwork::IpNetwork| IpConfig {
        address: *address,
        gateway: gateways.iter().copied().find(|gateway| address.contains(*gateway)),
        interface: None,
    };
    (record.ips.iter().map(with_gateway).collect(), dhcp)
}
