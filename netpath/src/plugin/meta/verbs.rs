//! CHECK, GC and STATUS.

use serde_json::{Map, Value, json};

use super::{Call, MetaError, PluginError, chain, del, resolve};
use crate::{
    delegate,
    plugin::sweep::{drafts, is_sandbox_gone},
    spec::{CniEnv, CniVersion, Command, ContainerId, Delegate, IfName, Selection, code},
    state::{Sandbox, boot_id},
};

/// CHECK: every network of the sandbox, each with the result that its ADD left.
pub(super) fn check(call: &Call<'_>) -> Result<(), PluginError> {
    let (container_id, first) = call.attachment()?;
    let cached = match call.sandboxes().read(container_id)? {
        Some(record) => Some(record.delegates),
        None => call.delegate_cache().read(container_id)?.filter(|it| !del::is_of_a_meta(it)),
    };
    let delegates = match &cached {
        Some(cached) => {
            let (delegates, torn) = del::read(cached, first);
            chain::join(torn)?;
            delegates
        }
        None => {
            let (label, conf) = resolve::first(call)?;
            vec![Delegate::new(0, first, label, None, conf, Selection::default())?]
        }
    };
    for delegate in &delegates {
        let cached = call.result_cache().read(&delegate.conf.name, container_id, &delegate.ifname)?;
        let mut told = call.told(delegate)?;
        let prev = match cached {
            Some(cached) => {
                told.capabilities = cached.capabilities;
                cached.result
            }
            None if delegate.is_first => call.meta.prev_result.clone(),
            None => None,
        };
        let checked = chain::check(call, delegate, &told, prev.as_ref());
        checked.map_err(|error| chain::of_network(call, delegate, Command::Check, error))?;
    }
    Ok(())
}

/// GC: that of the cluster network, then our own sandboxes that are not in the list and provably gone.
pub(super) fn gc(call: &Call<'_>) -> Result<(), PluginError> {
    let Some(valid) = &call.conf.valid_attachments else { return Ok(()) };
    if call.conf.disable_gc {
        return Ok(());
    }
    let mut errors = Vec::new();
    drafts(call.root, &call.cni_dir())?;
    let boot = boot_id()?;
    for sandbox in call.sandboxes().all()? {
        let is_valid = valid.iter().any(|entry| entry.container_id.as_str() == sandbox.container_id);
        if is_valid || sandbox.network != call.conf.name.as_str() || !is_sandbox_gone(&sandbox, &boot) {
            continue;
        }
        errors.extend(end(call, &sandbox).err());
    }
    let (label, conf) = resolve::first(call)?;
    if CniVersion::V1_1_0 <= conf.version && !conf.disable_gc {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let list: Vec<Value> = valid
            .iter()
            .map(|it| json!({"containerID": it.container_id.as_str(), "ifname": it.ifname.as_str()}))
            .collect();
        let conf = conf.map_plugins(|plugin| {
            for key in keys {
                plugin.insert(key.to_owned(), list.clone().into());
            }
        });
        let delegate = del::first_delegate(call, label, conf)?;
        for index in 0..delegate.conf.plugins.len() {
            errors.extend(without_sandbox(call, Command::Gc, &delegate, index).err());
        }
    }
    chain::join(errors)
}

/// Ends a sandbox as its DEL would, by its record alone.
fn end(call: &Call<'_>, sandbox: &Sandbox) -> Result<(), PluginError> {
    let env = CniEnv {
        command: Command::Del,
        container_id: Some(ContainerId::parse("container_id", &sandbox.container_id)?),
        ifname: Some(IfName::parse("ifname", &sandbox.ifname)?),
        netns: None,
        ..call.env.clone()
    };
    del::del(&Call { env: &env, path: call.path.clone(), source: call.source.clone(), ..*call })
}

/// STATUS speaks for the first network alone: it needs neither lock nor source nor data path, and another network's
/// trouble must not take the node out of service.
///
/// Nor must the API's: where that alone knows the first network, nothing is said against the node.
pub(super) fn status(call: &Call<'_>) -> Result<(), PluginError> {
    let Some((label, conf)) = resolve::first_on_node(call).map_err(unavailable)? else { return Ok(()) };
    for plugin in &conf.plugins {
        if !resolve::is_in_process(&plugin.kind) && !delegate::exists(&plugin.kind, &call.path) {
            let missing =
                delegate::DelegateError::NotFound { plugin: plugin.kind.clone(), path: call.path.clone() };
            return Err(unavailable(MetaError::from(missing).into()));
        }
    }
    if conf.version < CniVersion::V1_1_0 {
        return Ok(());
    }
    let delegate = del::first_delegate(call, label, conf)?;
    for index in 0..delegate.conf.plugins.len() {
        without_sandbox(call, Command::Status, &delegate, index)?;
    }
    Ok(())
}

fn without_sandbox(
    call: &Call<'_>,
    command: Command,
    delegate: &Delegate,
    index: usize,
) -> Result<(), PluginError> {
    let told = chain::Told { args: Vec::new(), capabilities: Map::new() };
    let stdin = delegate.conf.stdin(index, &told.capabilities, None);
    let parts = u32::try_from(delegate.conf.plugins.len() - index).unwrap_or(u32::MAX);
    chain::one(call, command, delegate, index, stdin, &told, call.left(parts)).map(drop)
}

/// No pod at all could be started here.
fn unavailable(error: PluginError) -> PluginError {
    PluginError::Unavailable { code: code::UNAVAILABLE, source: Box::new(error) }
}
