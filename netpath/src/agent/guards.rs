//! What a zone takes in the pod's own namespace, also where the zone came after the interface: by a change of its network,
//! or because Multus had made it.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    causes::full,
    police,
    state::{Outline, Phase},
};

/// Attachments for which it has been done since this process began, by sandbox and interface.
#[derive(Debug, Default)]
pub(super) struct Guards(BTreeSet<(String, String)>);

impl Guards {
    /// Does it where it was not done; tried again until it works.
    pub(super) fn keep(
        &mut self,
        records: &[Arc<Outline>],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut failed = None;
        let mut done = BTreeSet::new();
        let is_policed =
            |it: &&Arc<Outline>| it.phase == Phase::Ready && it.zone.is_some() && it.mac.is_some();
        for record in records.iter().filter(is_policed) {
            let key = (record.container_id.to_string(), record.ifname.to_string());
            if self.0.contains(&key) {
                done.insert(key);
                continue;
            }
            match police::guard(record) {
                Ok(()) => drop(done.insert(key)),
                // It has ended, and its record is the sweep's business.
                Err(_) if !record.netns.path.exists() => {}
                Err(error) => {
                    let name = format!("{} ({})", record.pod_name(), record.ifname);
                    failed = failed.or(Some(format!("{name}: {}", full(&error))));
                }
            }
        }
        self.0 = done;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}
