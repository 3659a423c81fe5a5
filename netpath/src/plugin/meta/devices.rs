//! Devices of the pod's networks: which one each is given, and what is published of it.

use std::collections::HashMap;

use super::{Call, MetaError, PluginError};
use crate::{
    causes::full,
    kubelet::{self, Devices},
    spec::{Delegate, DeviceInfo, Severity},
    state::DeviceInfoError,
};

/// The devices that the kubelet gave to the pod, handed out in their order.
#[derive(Default)]
pub(super) struct Given {
    /// As the kubelet says; `None` where there is no kubelet, or nobody has asked it.
    devices: Option<Devices>,
    /// How many of a resource have been handed out.
    taken: HashMap<String, usize>,
}

impl Given {
    /// Asks the kubelet, if the runtime names a pod that it can know.
    pub(super) fn to(call: &Call<'_>) -> Result<Self, PluginError> {
        let devices = match call.pod() {
            Some(pod) => kubelet::devices(call.root, &pod).map_err(MetaError::from)?,
            None => None,
        };
        Ok(Self { devices, taken: HashMap::new() })
    }

    /// The next device of `resource`, for `network`. What the kubelet gave wins over what the pod `asks` for.
    pub(super) fn next(
        &mut self,
        call: &Call<'_>,
        network: &str,
        resource: &str,
        asks: Option<String>,
    ) -> Result<String, MetaError> {
        let taken = self.taken.entry(resource.to_owned()).or_default();
        let given = self.devices.as_ref().and_then(|devices| devices.get(resource)?.get(*taken));
        match given.cloned() {
            Some(device) => {
                *taken += 1;
                Ok(device)
            }
            None => asks.ok_or_else(|| MetaError::NoDevice {
                network: network.to_owned(),
                resource: resource.to_owned(),
                pod: call.pod_text(),
                found: describe(self.devices.as_ref()),
            }),
        }
    }
}

/// Passes what the device plugin knows of a network's device on to the network's plugins.
///
/// They can do without: what cannot be read is told, and keeps no pod from starting.
pub(super) fn pass_on(call: &Call<'_>, delegate: &Delegate) -> Result<(), PluginError> {
    if let Err(error) = call.device_infos().pass_on(delegate, call.attachment()?.0) {
        unusable(call, delegate, &error);
    }
    Ok(())
}

/// What network-status says of a network's device.
pub(super) fn published(call: &Call<'_>, delegate: &Delegate) -> Result<Option<DeviceInfo>, PluginError> {
    match call.device_infos().read(delegate, call.attachment()?.0) {
        Ok(info) => Ok(info),
        Err(error) => {
            unusable(call, delegate, &error);
            Ok(None)
        }
    }
}

fn unusable(call: &Call<'_>, delegate: &Delegate, error: &DeviceInfoError) {
    let message = format!("network {}: {}", delegate.label, full(error));
    call.tell(Severity::Warning, "DeviceInfoUnusable", message);
}

/// What the kubelet says, in words.
fn describe(devices: Option<&Devices>) -> String {
    match devices {
        None => "there is no kubelet to ask".to_owned(),
        Some(devices) if devices.is_empty() => "the kubelet gave it no devices".to_owned(),
        Some(devices) => {
            let all: Vec<String> =
                devices.iter().map(|(resource, ids)| format!("{resource} ({})", ids.join(", "))).collect();
            format!("the kubelet gave it {}", all.join(" and "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_said() {
        assert_eq!(describe(None), "there is no kubelet to ask");
        assert_eq!(describe(Some(&Devices::new())), "the kubelet gave it no devices");
        let devices = Devices::from([
            ("a/x".to_owned(), vec!["1".to_owned(), "2".to_owned()]),
            ("b/y".to_owned(), vec!["3".to_owned()]),
        ]);
        assert_eq!(describe(Some(&devices)), "the kubelet gave it a/x (1, 2) and b/y (3)");
    }
}
