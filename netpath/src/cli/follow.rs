//! `netpath drops --follow`: drops as they happen.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{
    tell,
    view::{Format, View},
};
use crate::{
    kernel::bpf::{events::Consumer, maps::Maps},
    observe::{Event, Limits, Report, Window, tally},
    root::Root,
};

/// How often endpoints whose events were read are granted new ones: the kernel's side of the limit.
const GRANT: Duration = Duration::from_millis(100);
/// How often it is looked whether what is read is still what is loaded.
const LOOK: Duration = Duration::from_secs(1);
/// What a person can read.
const LIMITS: Limits = Limits { interval: Duration::from_millis(500), lines: 20, groups: 512 };

/// Reads events until the process is ended, its reader goes away, or netpath is uninstalled.
pub(super) fn run(root: &Root, mut maps: Maps, format: Format) -> anyhow::Result<ExitCode> {
    let mut consumer = Consumer::new(maps.pins(), &root.events_lock())?;
    consumer.grant_all(&mut maps)?;
    let mut names = View::read(root, &maps)?;
    let mut window = Window::default();
    let began = Instant::now();
    let (mut granted, mut looked) = (began, began);
    loop {
        let events = consumer.events(GRANT)?;
        let now = Instant::now();
        // A pod that started since the names were read.
        let unknown = |event: &Event| {
            event.endpoint != 0 && names.attachment(event.endpoint, event.generation).is_none()
        };
        if events.iter().any(unknown) {
            names = View::read(root, &maps)?;
        }
        if let Some(report) = tally(now.duration_since(began), &LIMITS, &mut window, events)
            && print(&report, &names, format).is_err()
        {
            // The reader went away.
            return Ok(ExitCode::SUCCESS);
        }
        if GRANT <= now.duration_since(granted) {
            granted = now;
            consumer.grant_spent(&mut maps)?;
        }
        if LOOK <= now.duration_since(looked) {
            looked = now;
            if !consumer.is_pinned() {
                bail!(
                    "netpath was upgraded or uninstalled meanwhile: start again to follow what is loaded now"
                );
            }
        }
    }
}

/// One line a group: text, or a JSON object with its `count`; at the end what was withheld.
fn print(report: &Report, names: &View, format: Format) -> std::io::Result<()> {
    match format {
        Format::Table => {
            let lines = report.lines(|id, generation| names.attachment(id, generation));
            lines.into_iter().try_for_each(tell)
        }
        Format::Json => {
            for group in &report.groups {
                let event = &group.first;
                let name = names.attachment(event.endpoint, event.generation);
                let mut value = event.to_json(name.as_deref());
                value["master_name"] = names.master_name(event.master).into();
                value["count"] = group.count.into();
                tell(value)?;
            }
            match report.withheld {
                0 => Ok(()),
                withheld => tell(serde_json::json!({ "withheld": withheld })),
            }
        }
    }
}
