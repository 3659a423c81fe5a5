//! `netpath status`

use std::{net::IpAddr, process::ExitCode};

use netpath_ebpf::abi::{Master, MasterCounters, master_flags, unknown_source};
use serde_json::{Value, json};

use super::{
    intruders, say,
    table::{
        Align::{Left, Right},
        Table,
    },
    view::{self, ATTENTION, Format, Output, View, path_json},
};
use crate::{
    kernel::{
        bpf::{
            Hook,
            attach::{self, HookState, Via},
            maps::{Fill, Maps, text},
            object, told,
            trees::Trees,
        },
        ethtool,
        netlink::{Link, Netlink},
        netns,
    },
    police,
    root::Root,
    spec::Mac,
    state::Record,
    zone::{UnknownSource, Xdp},
};

/// Arguments of `netpath status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let trees = Trees::list(&root.pins())?;
    if let Err(error) = trees.check() {
        return Ok(of_another_version(root, args.output, &error.to_string()));
    }
    let Some(maps) = view::open(root)? else {
        if let Some(why) = disabled(root).filter(|_| args.output.output == Format::Table) {
            say(why);
        }
        let mut answer = head(root, None);
        let alerts = view::unenforced(root)?;
        answer["alerts"] = json!(alerts);
        let code = view::nothing_loaded(root, args.output, &answer);
        if args.output.output == Format::Table {
            alerts.iter().for_each(|alert| say(format_args!("ALERT: {alert}")));
        }
        return Ok(code);
    };
    let mut status = Status::read(root, &maps)?;
    status.upgrade(root, &trees)?;
    match args.output.output {
        Format::Json => say(crate::spec::json::to_text(&status.to_json(root))),
        Format::Table => status.print(root),
    }
    Ok(if status.alerts.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(ATTENTION) })
}

/// Another version's tree is in force, or several are: which, and what to do about it.
fn of_another_version(root: &Root, output: Output, error: &str) -> ExitCode {
    match output.output {
        Format::Json => {
            let mut answer = head(root, None);
            answer["alerts"] = json!([error]);
            say(crate::spec::json::to_text(&answer));
        }
        Format::Table => say(format_args!("ALERT: {error}")),
    }
    ExitCode::from(ATTENTION)
}

/// All that is shown, before it is shown.
struct Status {
    abi_version: u32,
    cpus: u32,
    fill: Fill,
    masters: Vec<Shown>,
    /// What somebody should look at.
    alerts: Vec<String>,
    /// What somebody should know.
    notes: Vec<String>,
}

/// One master.
struct Shown {
    id: u16,
    row: Master,
    name: String,
    /// The link, where it is in the caller's namespace and still exists.
    link: Option<Link>,
    hooks: Vec<(HookState, Vec<String>)>,
    /// Whether `masters.json` names it; `None` where that is not known.
    bounded: Option<bool>,
    counters: MasterCounters,
}

impl Status {
    /// What `netpath upgrade` would do.
    fn upgrade(&mut self, root: &Root, trees: &Trees) -> anyhow::Result<()> {
        if !trees.unfinished(&root.pins())?.is_empty() {
            self.alerts.push(
                "an upgrade was ended half-way: hooks enforce, some by maps that no later change reaches: run `netpath \
                 upgrade`"
                    .to_owned(),
            );
        }
        match police::settings(root) {
            Ok(settings) => {
                let resized = object::resized(&root.pins(), &settings)?;
                if !resized.is_empty() {
                    self.notes.push(format!(
                        "settings.json and this build ask for other sizes of {}: `netpath upgrade` makes them without a gap",
                        resized.join(", ")
                    ));
                }
            }
            Err(error) => self.alerts.push(format!("{:#}", anyhow::Error::from(error))),
        }
        Ok(())
    }

    fn read(root: &Root, maps: &Maps) -> anyhow::Result<Self> {
        let (meta, view, counters) = (maps.meta()?, View::read(root, maps)?, maps.counters()?);
        let mut node = Netlink::open()?;
        let links = node.links()?;
        let cookie = netns::cookie().unwrap_or(0);
        let mut status = Self {
            abi_version: meta.abi_version,
            cpus: meta.cpus,
            fill: maps.fill()?,
            masters: Vec::new(),
            alerts: Vec::new(),
            notes: Vec::new(),
        };
        status.alerts.extend(disabled(root));
        let entries = match police::masters(root) {
            Ok(entries) => Some(entries),
            Err(error) => {
                status.alerts.push(format!("{:#}", anyhow::Error::from(error)));
                None
            }
        };
        for &(id, row) in &view.masters {
            let here = row.netns_cookie == cookie;
            let link = links.iter().find(|link| here && link.index == row.ifindex).cloned();
            let name = link.as_ref().map_or_else(|| text(&row.name), |link| link.name.clone());
            let states = attach::inspect(maps.pins(), id, row.ifindex)?;
            let ahead = if link.is_some() { police::ahead(&name, row.ifindex, &states)? } else { Vec::new() };
            let hooks: Vec<_> = states
                .into_iter()
                .map(|state| {
                    let programs = ahead.iter().find(|(hook, _)| *hook == state.hook);
                    (state, programs.map(|(_, programs)| programs.clone()).unwrap_or_default())
                })
                .collect();
            let names: Vec<&str> = link.iter().flat_map(Link::names).collect();
            let entry = match (&entries, &link) {
                (Some(entries), Some(_)) => match entries.find(&names) {
                    Ok(entry) => Some(entry),
                    Err(error) => {
                        status.alerts.push(error.to_string());
                        None
                    }
                },
                _ => None,
            };
            let shown = Shown {
                id,
                row,
                name,
                link,
                hooks,
                bounded: entry.map(|entry| entry.is_some()),
                counters: counters.master(id),
            };
            let auto = entry.flatten().is_none_or(|entry| entry.unknown_source() == UnknownSource::Auto);
            if auto && shown.link.is_some() && shown.row.unknown_source == unknown_source::AUDIT {
                status.notes.push(shown.unexplained(maps, &mut node)?);
            }
            let wants_xdp = entry.flatten().is_some_and(|entry| entry.xdp() == Xdp::Native);
            status.alerts.extend(shown.alerts(here, wants_xdp));
            status.notes.extend(shown.notes(here));
            status.masters.push(shown);
        }
        if !told::reads_frames()? {
            status.notes.push(told::UNREAD.to_owned());
        }
        let addresses = node.addresses(None)?;
        for row in &view.endpoints {
            let name = |index| links.iter().find(|link| link.index == index).map_or("?", |link| &link.name);
            let on_both = |address: IpAddr| addresses.iter().find(|own| own.address.ip() == address);
            let here = status.masters.iter().any(|shown| shown.id == row.key.master && shown.link.is_some());
            if here && let Some(own) = police::bound(&row.row).find_map(on_both) {
                let pod = row.record.as_ref().map_or_else(|| "a pod".to_owned(), Record::pod_name);
                status.alerts.push(format!(
                    "{pod} on {} has the address {}, which the node has on {}: the node's frames pass; give one of \
                     them another address",
                    row.master,
                    own.address.ip(),
                    name(own.index)
                ));
            }
        }
        let here = status.masters.iter().filter(|shown| shown.link.is_some());
        let here: Vec<_> = here.map(Shown::as_master).collect();
        let intruders = intruders::look(&view, &here, &mut node)?;
        status.alerts.extend(intruders);
        for record in view.rowless.iter().filter(|record| record.zone.is_some()) {
            let (pod, ifname) = (record.pod_name(), &record.ifname);
            status.alerts.push(format!(
                "{pod} ({ifname}) was attached with a zone and has no row in the maps, so it is not policed: delete the pod"
            ));
        }
        for torn in &view.torn {
            status.notes.push(format!("{} is ignored: {}", torn.path.display(), torn.cause));
        }
        Ok(status)
    }

    fn to_json(&self, root: &Root) -> Value {
        let mut value = head(root, Some(self.abi_version));
        value["cpus"] = json!(self.cpus);
        value["maps"] = json!({
            "endpoints": { "used": self.fill.endpoints, "rows": self.fill.endpoint_rows },
            "zones": { "used": self.fill.zones, "rows": self.fill.zone_rows },
        });
        value["masters"] = self.masters.iter().map(Shown::to_json).collect();
        value["alerts"] = json!(self.alerts);
        value["notes"] = json!(self.notes);
        value
    }

    fn print(&self, root: &Root) {
        let (version, abi, cpus) = (env!("CARGO_PKG_VERSION"), self.abi_version, self.cpus);
        say(format_args!("netpath {version}, ABI {abi}, pins below {}", root.pins().display()));
        let Fill { endpoints, endpoint_rows, zones, zone_rows } = self.fill;
        say(format_args!(
            "{endpoints} of {endpoint_rows} endpoints, {zones} of {zone_rows} zones, counters for {cpus} CPUs"
        ));
        say("");
        let mut hooks = Table::new(&[
            ("MASTER", Left),
            ("ID", Right),
            ("HOOK", Left),
            ("VIA", Left),
            ("STATE", Left),
            ("PROGRAM", Right),
            ("BUILD", Left),
            ("AHEAD", Left),
        ]);
        let mut masters = Table::new(&[
            ("MASTER", Left),
            ("BOUND", Left),
            ("PROMISC", Left),
            ("UNKNOWN", Left),
            ("HOST MACS", Left),
        ]);
        let mut counters = Table::new(&[
            ("MASTER", Left),
            ("HOST", Right),
            ("HOST DROPPED", Right),
            ("UNKNOWN PASSED", Right),
            ("UNKNOWN DROPPED", Right),
            ("GROUP", Right),
            ("EVENTS", Right),
            ("LIMITED", Right),
            ("LOST", Right),
        ]);
        for shown in &self.masters {
            for (state, ahead) in &shown.hooks {
                hooks.row(vec![
                    shown.name.clone(),
                    shown.id.to_string(),
                    state.hook.name().to_owned(),
                    state.via.name().to_owned(),
                    shown.state_word(state).to_owned(),
                    state.program.to_string(),
                    build(shown.row.object).to_owned(),
                    ahead.join(", "),
                ]);
            }
            masters.row(vec![
                shown.name.clone(),
                shown.bounded.map_or("", |bounded| if bounded { "masters.json" } else { "none" }).to_owned(),
                shown
                    .link
                    .as_ref()
                    .map_or("", |link| if link.is_promisc() { "on" } else { "off" })
                    .to_owned(),
                unknown(&shown.row).to_owned(),
                shown.host_macs().join(", "),
            ]);
            let c = &shown.counters;
            let mut cells = vec![shown.name.clone()];
            cells.extend(
                [
                    c.host_packets,
                    c.host_dropped,
                    c.unknown_passed,
                    c.unknown_dropped,
                    c.group_packets,
                    c.events_emitted,
                    c.events_limited,
                    c.events_lost,
                ]
                .map(|count| count.to_string()),
            );
            counters.row(cells);
        }
        if self.masters.is_empty() {
            say("no master is under police: the first policed attachment, or `netpath attach`, brings one");
        } else {
            say(format_args!("{hooks}\n\n{masters}\n\n{counters}"));
        }
        if !self.alerts.is_empty() || !self.notes.is_empty() {
            say("");
        }
        for alert in &self.alerts {
            say(format_args!("ALERT: {alert}"));
        }
        for note in &self.notes {
            say(note);
        }
    }
}

impl Shown {
    /// `here`: the master is in the caller's network namespace.
    fn alerts(&self, here: bool, wants_xdp: bool) -> Vec<String> {
        let name = &self.name;
        let mut alerts = Vec::new();
        if here && self.link.is_none() {
            alerts.push(format!("{name} is gone: its pods have lost their interfaces; delete them"));
        } else if here {
            let wanted = Hook::ALL.into_iter().filter(|hook| *hook != Hook::Xdp || wants_xdp);
            for hook in wanted {
                let found = self.hooks.iter().find(|(state, _)| state.hook == hook && state.live);
                if found.is_some_and(|(state, _)| !state.bound) {
                    let hook = hook.name();
                    alerts.push(format!(
                        "{name}: the program at {hook} works on maps that are not pinned any more: run `netpath attach {name}`"
                    ));
                }
                if found.is_none() {
                    let hook = hook.name();
                    alerts.push(format!(
                        "{name}: {hook} is not attached, so nothing is enforced there: run `netpath attach {name}`"
                    ));
                }
            }
        }
        if let Some(program) = self.link.as_ref().and_then(|link| link.generic_xdp) {
            alerts.push(format!(
                "{name}: XDP program {program} of somebody else runs in generic mode: TC may not see what it should judge \
                 on the way in, and no policed pod can start; `ip link set {name} xdpgeneric off` removes it"
            ));
        }
        if here && self.link.is_some() && offloads_forwarding(name) {
            alerts.push(format!(
                "{name}: `{FORWARDING}` is on, so the card hands frames to pods past the programs: run `ethtool -K {name} \
                 {FORWARDING} off`"
            ));
        }
        for (state, ahead) in self.hooks.iter().filter(|(_, ahead)| !ahead.is_empty()) {
            alerts.push(view::ahead(name, state.hook, ahead));
        }
        if self.counters.host_dropped != 0 {
            alerts.push(format!(
                "{name}: {} frames had the host's MAC and an address of a pod; they passed: look for an address that \
                 both the host and a pod have",
                self.counters.host_dropped
            ));
        }
        alerts
    }

    fn notes(&self, here: bool) -> Vec<String> {
        let name = &self.name;
        let mut notes = Vec::new();
        if !here {
            notes.push(format!(
                "{name} is in another network namespace: run this there to see its hooks in full"
            ));
        }
        if self.row.object != object::digest() && object::digest() != 0 && self.row.object != 0 {
            notes.push(format!(
                "{name}: the programs are of another build: `netpath attach {name}` replaces them without a gap"
            ));
        }
        if self.bounded == Some(false) {
            notes.push(format!("zones on {name} are advice: any NAD may use it without one"));
        }
        notes
    }

    /// Why `unknownSource: auto` does not drop here.
    fn unexplained(&self, maps: &Maps, node: &mut Netlink) -> anyhow::Result<String> {
        let host: Vec<Mac> = self.macs().collect();
        let macs = police::unexplained(maps, node, self.row.ifindex, self.id, &host)?;
        let macs: Vec<String> = macs.iter().map(Mac::to_string).collect();
        let name = &self.name;
        Ok(if macs.is_empty() {
            format!(
                "{name}: frames with an unknown MAC pass until the next attachment or `netpath attach {name}`"
            )
        } else {
            format!(
                "{name}: frames with an unknown MAC pass, since upper devices of it are not policed: {}",
                macs.join(", ")
            )
        })
    }

    fn state_word(&self, state: &HookState) -> &'static str {
        match (state.live, state.via, &self.link) {
            (true, _, _) => "live",
            // Filters of another namespace cannot be listed from here.
            (false, Via::Clsact, None) => "unknown",
            (false, _, _) => "dead",
        }
    }

    fn as_master(&self) -> intruders::Master<'_> {
        intruders::Master {
            id: self.id,
            name: &self.name,
            ifindex: self.row.ifindex,
            host: self.macs().collect(),
            drops_unknown: self.row.unknown_source != unknown_source::AUDIT,
        }
    }

    fn macs(&self) -> impl Iterator<Item = Mac> {
        let used = self.row.host_macs.iter().take(self.row.host_mac_count.into());
        used.map(|mac| Mac::new([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]]))
    }

    fn host_macs(&self) -> Vec<String> {
        self.macs().map(|mac| mac.to_string()).collect()
    }

    fn to_json(&self) -> Value {
        let hooks: Vec<Value> = self
            .hooks
            .iter()
            .map(|(state, ahead)| {
                json!({
                    "hook": state.hook.name(),
                    "via": state.via.name(),
                    "state": self.state_word(state),
                    "program_id": state.program,
                    "ahead": ahead,
                })
            })
            .collect();
        let c = &self.counters;
        json!({
            "id": self.id,
            "name": self.name,
            "ifindex": self.row.ifindex,
            "present": self.link.is_some(),
            "object": format!("{:016x}", self.row.object),
            "build": build(self.row.object),
            "hooks": hooks,
            "bounded": self.bounded,
            "promisc": self.link.as_ref().map(Link::is_promisc),
            "unknown_source": unknown(&self.row),
            "dedicated": self.row.flags & master_flags::DEDICATED != 0,
            "host_macs": self.host_macs(),
            "counters": {
                "host_packets": c.host_packets,
                "host_dropped": c.host_dropped,
                "unknown_passed": c.unknown_passed,
                "unknown_dropped": c.unknown_dropped,
                "group_packets": c.group_packets,
                "events_emitted": c.events_emitted,
                "events_limited": c.events_limited,
                "events_lost": c.events_lost,
            },
        })
    }
}

/// The offload by which a card sorts frames into macvlans by itself.
const FORWARDING: &str = "l2-fwd-offload";

/// A device that does not tell has no such thing.
fn offloads_forwarding(name: &str) -> bool {
    ethtool::active_features(name).is_ok_and(|features| features.iter().any(|feature| feature == FORWARDING))
}

/// What is known also where nothing is loaded.
fn head(root: &Root, abi_version: Option<u32>) -> Value {
    json!({
        "loaded": abi_version.is_some(),
        "version": env!("CARGO_PKG_VERSION"),
        "abi_version": abi_version,
        "object": format!("{:016x}", object::digest()),
        "pins": path_json(&root.pins()),
        "disabled": root.disabled().is_some(),
        "cpus": null,
        "maps": null,
        "masters": [],
        "alerts": [],
        "notes": [],
    })
}

/// Why nothing is attached, where somebody wants it so.
fn disabled(root: &Root) -> Option<String> {
    let path = root.disabled()?;
    Some(format!(
        "{} exists, so nothing is attached and policed pods cannot start: remove the file to switch netpath on again",
        path.display()
    ))
}

/// Whose programs they are.
fn build(object: u64) -> &'static str {
    match object {
        0 => "none",
        own if own == object::digest() => "this",
        _ => "other",
    }
}

fn unknown(row: &Master) -> &'static str {
    match row.unknown_source {
        unknown_source::DROP => "drop",
        unknown_source::CLAIMED => "claimed",
        _ => "audit",
    }
}
