//! GC: ends what the runtime does not know any more.

use super::{Call, PluginError, del};
use crate::causes::full;
use crate::{
    ipam,
    police::is_gone,
    spec::{CniEnv, ContainerId, IfName},
    state::{Record, Records, boot_id},
};

/// Ends attachments of this network that are not in the list of valid ones and provably dead.
///
/// Only what our own records name is touched: a reservation directory may hold another runtime's addresses.
/// A namespace that still stands is somebody's, whatever the list says.
pub(super) fn gc(call: &Call<'_>) -> Result<(), PluginError> {
    let Some(valid) = &call.conf.valid_attachments else { return Ok(()) };
    if call.conf.disable_gc {
        return Ok(());
    }
    Records::new(call.root).sweep()?;
    let boot = boot_id()?;
    let is_valid = |container_id: &ContainerId, ifname: &IfName| {
        valid.iter().any(|entry| entry.container_id == *container_id && entry.ifname == *ifname)
    };
    let listing = Records::new(call.root).all()?;
    let of_network = listing.records.iter().filter(|record| record.network == call.conf.name);
    let dead: Vec<&Record> = of_network
        .filter(|record| !is_valid(&record.container_id, &record.ifname) && is_gone(record, &boot))
        .collect();
    let is_dead = |container_id: &ContainerId, ifname: &IfName| {
        dead.iter().any(|record| record.is_of(container_id, ifname))
    };
    let mut left = Vec::new();
    let mut first = None;
    for record in &dead {
        let env = CniEnv {
            container_id: Some(record.container_id.clone()),
            ifname: Some(record.ifname.clone()),
            netns: None,
            ..call.env.clone()
        };
        let one = Call {
            deadline: call.deadline,
            root: call.root,
            env,
            conf: call.conf.clone(),
            stdin: call.stdin,
            ipam: call.ipam.clone(),
            role: call.role,
            nad: call.nad,
        };
        if let Err(error) = del::del(&one) {
            match first {
                None => first = Some(error),
                Some(_) => left.push(full(&error)),
            }
        }
    }
    ipam::gc(&call.network(), &is_dead)?;
    match (first, left.is_empty()) {
        (None, _) => Ok(()),
        (Some(failed), true) => Err(failed),
        (Some(failed), false) => Err(PluginError::Undo { failed: Box::new(failed), left }),
    }
}
