//! What the kernel and the records say of this node, joined for output.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};
use netpath_ebpf::abi::{Endpoint, EndpointKey, Master, kind, mode};
use serde_json::Value;

use super::say;
use crate::{
    kernel::bpf::{
        Hook,
        attach::Change,
        maps::{Maps, text},
        trees::Trees,
        zones::ZoneRow,
    },
    police,
    root::Root,
    spec::Mac,
    state::{self, Record, Records, Torn},
};

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For programs: the keys are described in docs/cli.md and stay.
    Json,
}

/// The option that every command with an answer has.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Output {
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) output: Format,
}

/// Exit code of commands that show something, where there is nothing loaded to show.
pub(super) const NOTHING_LOADED: u8 = 3;
/// Exit code of `status` and `attach` where something needs attention.
pub(super) const ATTENTION: u8 = 4;

/// Says that nothing is loaded: in JSON by `empty`, which has the shape of the answer.
pub(super) fn nothing_loaded(root: &Root, output: Output, empty: &Value) -> ExitCode {
    match output.output {
        Format::Json => say(crate::spec::json::to_text(empty)),
        Format::Table => say(format_args!(
            "nothing is loaded below {}: no attachment has been policed yet on this node, or netpath was uninstalled",
            root.pins().display()
        )),
    }
    ExitCode::from(NOTHING_LOADED)
}

/// What `status` and `attach` say of programs that stand before ours.
pub(super) fn ahead(master: &str, hook: Hook, programs: &[String]) -> String {
    let (hook, programs) = (hook.name(), programs.join(", "));
    format!(
        "{master}: {programs} runs before netpath at {hook} and may decide alone: attach it after netpath"
    )
}

/// What `attach` and `upgrade` say of a hook.
pub(super) fn change(master: &str, change: &Change) -> String {
    match change {
        Change::Attached(hook, via) => format!("{master}: {} attached ({})", hook.name(), via.name()),
        Change::Replaced(hook, via) => format!("{master}: {} replaced ({})", hook.name(), via.name()),
        Change::Detached(hook) => format!("{master}: {} detached", hook.name()),
    }
}

/// Attachments of this boot that were made with a zone, where nothing is loaded that could enforce it.
pub(super) fn unenforced(root: &Root) -> anyhow::Result<Vec<String>> {
    let boot = state::boot_id()?;
    let records = Records::new(root).all()?.records;
    let zoned = records.iter().filter(|record| record.boot_id == boot && record.zone.is_some());
    let sentence = |record: &Record| {
        format!(
            "{} ({}) was attached with a zone and nothing is loaded, so it is not policed: run `netpath attach`",
            record.pod_name(),
            record.ifname
        )
    };
    Ok(zoned.map(sentence).collect())
}

/// Opens the maps; `None` if nothing is loaded. Missing rights, and another version's maps, are an error that says so.
pub(super) fn open(root: &Root) -> anyhow::Result<Option<Maps>> {
    check_rights(root)?;
    Trees::list(&root.pins())?.check()?;
    crate::police::maps(root).context("cannot read what is loaded")
}

/// Without rights pins look as if they were not there, so rights come first.
pub(super) fn check_rights(root: &Root) -> anyhow::Result<()> {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let pins = root.pins();
    if effective & (1 << CAP_SYS_ADMIN | 1 << CAP_BPF) == 0 {
        bail!(
            "no right to use BPF maps: run this as root (or with CAP_BPF, CAP_NET_ADMIN and read access to {})",
            pins.display()
        );
    }
    match std::fs::metadata(&pins) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("no right to look into {}: run this as root", pins.display())
        }
        _ => Ok(()),
    }
}

/// Everything that several commands show a part of.
pub(super) struct View {
    pub(super) masters: Vec<(u16, Master)>,
    pub(super) zones: Vec<ZoneRow>,
    pub(super) endpoints: Vec<Row>,
    /// Attachments of this boot without a row: they are not policed, and not counted.
    pub(super) rowless: Vec<Record>,
    /// Files among the records that are none.
    pub(super) torn: Vec<Torn>,
}

/// An endpoint or foreign row with its record.
pub(super) struct Row {
    pub(super) key: EndpointKey,
    pub(super) row: Endpoint,
    pub(super) record: Option<Record>,
    /// Name of the master when its row was made.
    pub(super) master: String,
    /// Name of the network that the zone belongs to; empty without a zone.
    pub(super) zone: String,
}

impl View {
    pub(super) fn read(root: &Root, maps: &Maps) -> anyhow::Result<Self> {
        let boot = state::boot_id()?;
        let listing = Records::new(root).all()?;
        let mut records: Vec<Record> =
            listing.records.into_iter().filter(|record| record.boot_id == boot).collect();
        let (masters, zones) = (maps.masters()?, maps.zones()?);
        let mut endpoints = Vec::new();
        for (key, row) in maps.endpoints()? {
            let own = |record: &Record| police::is_row_of(record, &key, &row);
            let record = records.iter().position(own).map(|at| records.swap_remove(at));
            let master = masters.iter().find(|(id, _)| *id == key.master);
            let zone = zones.iter().find(|zone| row.zone != 0 && zone.id == row.zone);
            endpoints.push(Row {
                key,
                row,
                record,
                master: master.map_or_else(|| format!("#{}", key.master), |(_, row)| text(&row.name)),
                zone: zone.map(|zone| text(&zone.info.name)).unwrap_or_default(),
            });
        }
        endpoints.sort_by_cached_key(|row| (row.is_foreign(), row.pod(), row.ifname(), row.row.id));
        Ok(Self { masters, zones, endpoints, rowless: records, torn: listing.torn })
    }

    /// Name of an attachment by endpoint id and generation, for events.
    pub(super) fn attachment(&self, id: u32, generation: u32) -> Option<String> {
        let row = self.endpoints.iter().find(|row| (row.row.id, row.row.generation) == (id, generation))?;
        Some(match row.record {
            Some(_) => format!("{}/{}", row.pod(), row.ifname()),
            None => format!("endpoint {id} ({})", row.mac()),
        })
    }

    pub(super) fn master_name(&self, id: u16) -> Option<String> {
        self.masters.iter().find(|(other, _)| *other == id).map(|(_, row)| text(&row.name))
    }
}

impl Row {
    pub(super) fn is_foreign(&self) -> bool {
        self.row.kind == kind::FOREIGN
    }

    /// `namespace/name`, or the container where the runtime named no pod; empty without a record.
    pub(super) fn pod(&self) -> String {
        self.record.as_ref().map(Record::pod_name).unwrap_or_default()
    }

    pub(super) fn ifname(&self) -> String {
        self.record.as_ref().map(|record| record.ifname.to_string()).unwrap_or_default()
    }

    pub(super) fn network(&self) -> String {
        self.record.as_ref().map(|record| record.network.to_string()).unwrap_or_default()
    }

    pub(super) fn mac(&self) -> String {
        Mac::new(self.key.mac).to_string()
    }

    /// The addresses it may send from.
    pub(super) fn ips(&self) -> Vec<String> {
        let v4 = self.row.v4.iter().filter(|ip| **ip != [0; 4]).map(|ip| Ipv4Addr::from(*ip).to_string());
        let v6 = self.row.v6.iter().filter(|ip| **ip != [0; 16]).map(|ip| Ipv6Addr::from(*ip).to_string());
        v4.chain(v6).collect()
    }

    pub(super) fn mode(&self) -> &'static str {
        mode_name(self.row.mode)
    }
}

/// The word for a mode in the maps.
pub(super) fn mode_name(mode: u8) -> &'static str {
    match mode {
        mode::OFF => "off",
        mode::AUDIT => "audit",
        mode::ENFORCE => "enforce",
        _ => "unknown",
    }
}

/// File path for JSON.
pub(super) fn path_json(path: &Path) -> Value {
    Value::String(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_has_a_word() {
        assert_eq!([0, 1, 2, 9].map(mode_name), ["off", "audit", "enforce", "unknown"]);
    }
}
