//! DEL: ends what was begun, by whoever's record of it there is.

use serde_json::{Map, Value};

use super::{Call, PluginError, chain, resolve};
use crate::{
    causes::full,
    root::Root,
    spec::{CniArgs, CniEnv, Command, Delegate, IfName, NetworkConf, Selection, Severity},
    state::{CachedResult, ResultCache, Sandbox},
};

/// Where runtimes keep the results of the networks that they execute themselves.
const RUNTIME_CACHE: &str = "var/lib/cni";

/// Ends every network of the sandbox.
///
/// The record says which they are; without one Multus's cache, if Multus made them; without both they are what the
/// cluster network made, before there was a netpath on this node.
pub(super) fn del(call: &Call<'_>) -> Result<(), PluginError> {
    let (container_id, first) = call.attachment()?;
    let record = call.sandboxes().read(container_id)?;
    let delegates = match &record {
        Some(record) => Some(read(&record.delegates, first)),
        None => call
            .delegate_cache()
            .read(container_id)?
            .filter(|it| !is_of_a_meta(it))
            .map(|it| read(&it, first)),
    };
    let Some((delegates, torn)) = delegates else { return unrecorded(call) };
    for error in &torn {
        call.tell(Severity::Warning, "RecordTorn", full(error));
    }
    let recorded = record.as_ref().map(recorded_env(call));
    let (lost, errors): (Vec<_>, Vec<_>) =
        end(call, &delegates, recorded.as_ref()).into_iter().partition(|error| !is_worth_retrying(error));
    for error in &lost {
        // A pod must not stay for ever for a plugin that is gone.
        call.tell(Severity::Warning, "NotEnded", full(error));
    }
    chain::join(errors)?;
    if let Some(record) = record.as_ref().filter(|_| !lost.is_empty() || !torn.is_empty()) {
        let mut record = record.clone();
        // DEL asks the API for nothing; the agent tells.
        record.pending_events.extend(call.take_events());
        call.sandboxes().set_aside(&record, container_id)?;
    }
    forget(call)
}

/// What a DEL that comes without it (from GC, or for a sandbox that is gone) takes from the ADD.
pub(super) struct Recorded {
    args: CniArgs,
    runtime: Map<String, Value>,
}

fn recorded_env(call: &Call<'_>) -> impl Fn(&Sandbox) -> Recorded {
    let runtime = call.meta.runtime.clone();
    move |record| Recorded {
        args: CniArgs::parse_leniently(&record.args),
        runtime: if runtime.is_empty() { record.runtime.clone() } else { runtime.clone() },
    }
}

/// Ends these networks, the last first, every one of them, each with what it was attached by.
pub(super) fn end(call: &Call<'_>, delegates: &[Delegate], recorded: Option<&Recorded>) -> Vec<PluginError> {
    let mut errors = Vec::new();
    for (index, delegate) in delegates.iter().enumerate().rev() {
        let share = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        let failed = match end_one(call, delegate, recorded, share) {
            Ok(failed) => failed,
            Err(error) => vec![error],
        };
        errors.extend(failed.into_iter().map(|error| chain::of_network(call, delegate, Command::Del, error)));
    }
    errors
}

fn end_one(
    call: &Call<'_>,
    delegate: &Delegate,
    recorded: Option<&Recorded>,
    share: u32,
) -> Result<Vec<PluginError>, PluginError> {
    let container_id = call.attachment()?.0;
    // One that cannot be read does not become better by being asked for again.
    let cached = call
        .result_cache()
        .read(&delegate.conf.name, container_id, &delegate.ifname)
        .unwrap_or_else(|error| {
            tracing::warn!(error = full(&error), "a cached result is ignored");
            None
        });
    let (args, runtime) = match recorded {
        Some(recorded) if call.env.args.pairs.is_empty() => (&recorded.args, &recorded.runtime),
        Some(recorded) => (&call.env.args, &recorded.runtime),
        None => (&call.env.args, &call.meta.runtime),
    };
    let told = chain::Told {
        args: delegate.args(args),
        capabilities: match &cached {
            Some(cached) if !cached.capabilities.is_empty() => cached.capabilities.clone(),
            _ => call.capabilities(delegate, runtime)?,
        },
    };
    let prev = cached.and_then(|cached| cached.result);
    let errors = chain::del(call, delegate, &told, prev.as_ref(), share);
    if errors.is_empty() {
        let device = call.device_infos().remove(delegate, container_id);
        let result =
            call.result_cache().remove(&delegate.conf.name, container_id, &delegate.ifname).map(drop);
        for error in [device, result].into_iter().filter_map(Result::err) {
            tracing::warn!(error = full(&error), "a file of a network that has ended stays");
        }
    }
    Ok(errors)
}

/// Nobody wrote anything down: whoever made the sandbox's network was the cluster network itself.
fn unrecorded(call: &Call<'_>) -> Result<(), PluginError> {
    let (label, conf) = match resolve::first(call) {
        Ok(first) => first,
        Err(error) if !is_worth_retrying(&error) => {
            call.tell(Severity::Warning, "NotEnded", full(&error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let delegate = first_delegate(call, label, conf)?;
    let prev = match &call.meta.prev_result {
        Some(prev) => Some(prev.clone()),
        None => cached_by_runtime(call.root, &delegate, call.env).and_then(|cached| cached.result),
    };
    let errors = chain::del(call, &delegate, &call.told(&delegate)?, prev.as_ref(), 1);
    let (lost, errors): (Vec<_>, Vec<_>) = errors.into_iter().partition(|error| !is_worth_retrying(error));
    for error in &lost {
        call.tell(Severity::Warning, "NotEnded", full(error));
    }
    chain::join(errors)?;
    if lost.is_empty() {
        // The runtime removes it where it ends the network itself, which it will never do again.
        let cache = ResultCache::new(&call.root.join(RUNTIME_CACHE));
        if let Err(error) = cache.remove(&delegate.conf.name, call.attachment()?.0, &delegate.ifname) {
            tracing::warn!(error = full(&error), "a result that the runtime cached stays");
        }
    }
    forget(call)
}

/// The cluster network as the first of a sandbox.
pub(super) fn first_delegate(
    call: &Call<'_>,
    label: String,
    conf: NetworkConf,
) -> Result<Delegate, PluginError> {
    // Commands about no sandbox have no interface, and a delegate has.
    let ifname = match &call.env.ifname {
        Some(ifname) => ifname.clone(),
        None => IfName::parse("CNI_IFNAME", "eth0")?,
    };
    Ok(Delegate::new(0, &ifname, label, None, conf, Selection::default())?)
}

fn cached_by_runtime(root: &Root, delegate: &Delegate, env: &CniEnv) -> Option<CachedResult> {
    let cache = ResultCache::new(&root.join(RUNTIME_CACHE));
    cache.read(&delegate.conf.name, env.container_id.as_ref()?, &delegate.ifname).ok()?
}

/// The networks of a list as cached; what cannot be read of it will not become better by being asked for again.
pub(super) fn read(cached: &[Value], first: &IfName) -> (Vec<Delegate>, Vec<PluginError>) {
    let mut delegates = Vec::new();
    let mut torn = Vec::new();
    for (index, value) in cached.iter().enumerate() {
        match Delegate::from_cached(index, first, value) {
            Ok(delegate) => delegates.push(delegate),
            Err(error) => torn.push(error.into()),
        }
    }
    (delegates, torn)
}

/// Whether the list is that of a meta-plugin which executes us as its cluster network.
pub(super) fn is_of_a_meta(cached: &[Value]) -> bool {
    let Ok(first) = IfName::parse("CNI_IFNAME", "eth0") else { return false };
    let first = cached.first().and_then(|value| Delegate::from_cached(0, &first, value).ok());
    first.is_some_and(|delegate| resolve::meta_in(&delegate.conf, true).is_some())
}

/// Removes the list of the sandbox's networks, unless it is that of a meta-plugin which executes us.
pub(super) fn forget_delegates(call: &Call<'_>) -> Result<(), PluginError> {
    let (container_id, cache) = (call.attachment()?.0, call.delegate_cache());
    if !cache.read(container_id)?.is_some_and(|it| is_of_a_meta(&it)) {
        cache.remove(container_id)?;
    }
    Ok(())
}

/// Removes all that is remembered of the sandbox.
fn forget(call: &Call<'_>) -> Result<(), PluginError> {
    let container_id = call.attachment()?.0;
    forget_delegates(call)?;
    if let Some(source) = &call.source
        && let Err(error) = source.forget(container_id)
    {
        tracing::warn!(error = full(&error), "a status file stays");
    }
    call.sandboxes().remove(container_id)?;
    Ok(())
}

fn is_worth_retrying(error: &PluginError) -> bool {
    match error {
        PluginError::Meta(super::MetaError::Network { source, .. }) => is_worth_retrying(source),
        PluginError::Meta(error) => error.is_worth_retrying(),
        PluginError::Conf(_) => false,
        _ => true,
    }
}
