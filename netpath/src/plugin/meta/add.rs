//! ADD: every network of the pod, or none of them.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::{Call, MetaError, PluginError, chain, del, devices, masters, resolve, routes};
use crate::{
    causes::full,
    cluster::{ClusterError, Which},
    delegate::DelegateError,
    exec::Effects,
    kernel::netns::Netns,
    spec::{
        CniResult, Command, Delegate, DeviceInfo, Event, NetworkStatus, PodRef, Severity,
        meta::{CNI_DIR, POD_ANNOTATIONS},
        network_status::annotation,
    },
    state::{self, CachedResult, Phase, Pod, Records, Sandbox},
};

/// How long the first network is waited for, as Multus does.
const READINESS: Duration = Duration::from_secs(45);

/// The time for taking back what was done, on top of that of the ADD: before kubelet's two minutes are over.
const UNDO: Duration = Duration::from_secs(25);

/// A network that has been attached.
pub(super) struct Attached {
    pub(super) delegate: Delegate,
    pub(super) told: chain::Told,
    /// As its last plugin printed it.
    pub(super) result: Value,
    /// What is known of its device.
    pub(super) device: Option<DeviceInfo>,
}

/// Attaches every network in turn. When one fails, all are ended, the one that failed first.
pub(super) fn add(call: &Call<'_>) -> Result<Value, PluginError> {
    let result = add_all(call);
    call.post_events();
    result
}

fn add_all(call: &Call<'_>) -> Result<Value, PluginError> {
    wait_until_ready(call)?;
    let networks = resolve::networks(call)?;
    let asks = networks.is_asked_for;
    for delegate in &networks.delegates {
        // What is refused here is not executed for its end either.
        (0..delegate.conf.plugins.len())
            .try_for_each(|index| masters::refuse(call, delegate, index))
            .map_err(|error| chain::of_network(call, delegate, Command::Add, error))?;
    }
    // One look into the pod for all that is to be seen there: entering it costs more than most of the rest.
    let mut pod = open(call);
    if let Some(pod) = &mut pod {
        // Before the record, which may be that of an ADD that was never followed by its DEL.
        for delegate in &networks.delegates {
            refuse_taken_name(call, pod, delegate)?;
        }
    }
    let mut sandbox = sandbox(call, &networks, pod.as_ref())?;
    remember(call, &sandbox, asks)?;
    let (mut begun, mut attached) = (0, Vec::new());
    let result = attach(call, &networks.delegates, pod.as_mut(), asks, &mut begun, &mut attached)
        .and_then(|()| finish(call, pod.as_mut(), &mut attached, &networks));
    match result {
        Ok((result, pending_status)) => {
            sandbox.phase = Phase::Ready;
            sandbox.pending_status = pending_status;
            sandbox.pending_events = call.leave_events(&named_pod(call, &networks.which)?);
            if let Err(error) = call.sandboxes().write(&sandbox, call.attachment()?.0) {
                // The record is there, and says all that DEL needs.
                tracing::warn!(error = full(&error), "the record of a sandbox is not up to date");
            }
            Ok(result)
        }
        Err(failed) => Err(take_back(call, &networks.delegates[..begun], failed)),
    }
}

/// The pod's namespace. A runtime of virtual machines may pass what is none; the plugins know best what to make of it.
fn open(call: &Call<'_>) -> Option<Effects> {
    let netns = Netns::open(call.env.netns.as_deref()?).ok()?;
    match Effects::open(netns) {
        Ok(effects) => Some(effects),
        Err(error) => {
            tracing::debug!(error = full(&error), "the sandbox is no network namespace");
            None
        }
    }
}

/// The networks in their order; those that were attached are in `attached`, whatever happens, and `begun` says how
/// many may have left something.
fn attach(
    call: &Call<'_>,
    delegates: &[Delegate],
    mut pod: Option<&mut Effects>,
    asks: bool,
    begun: &mut usize,
    attached: &mut Vec<Attached>,
) -> Result<(), PluginError> {
    for delegate in delegates {
        let of_network = |error| chain::of_network(call, delegate, Command::Add, error);
        if let Some(pod) = &mut pod {
            // A plugin may make more than it was asked for. What has the name is not this network's to delete.
            refuse_taken_name(call, pod, delegate)?;
        }
        *begun += 1;
        devices::pass_on(call, delegate)?;
        let told = call.told(delegate)?;
        let result = chain::add(call, delegate, &told).map_err(of_network)?;
        // One that nobody could read is as good as none.
        CniResult::parse(delegate.conf.version, &result).map_err(|error| of_network(error.into()))?;
        let device = devices::published(call, delegate)?;
        let it = Attached { delegate: delegate.clone(), told, result, device };
        // At once: whoever ends it, after a later network's failure too, passes the result on to its plugins.
        cache(call, &it, asks)?;
        attached.push(it);
    }
    Ok(())
}

/// Default routes, caches, status, events; then the result for the runtime, and the status if it is still to be
/// written.
fn finish(
    call: &Call<'_>,
    pod: Option<&mut Effects>,
    attached: &mut [Attached],
    networks: &resolve::Networks,
) -> Result<(Value, Option<String>), PluginError> {
    let asks = networks.is_asked_for;
    if let Some(pod) = pod
        && 1 < attached.len()
    {
        let before: Vec<Value> = attached.iter().map(|it| it.result.clone()).collect();
        routes::settle(pod, attached)?;
        for (it, _) in attached.iter().zip(before).filter(|(it, before)| it.result != *before) {
            cache(call, it, asks)?;
        }
    }
    let mut statuses = Vec::new();
    for it in attached.iter() {
        let result = CniResult::parse(it.delegate.conf.version, &it.result)?;
        let all = NetworkStatus::of_result(&result, &it.delegate.label, it.delegate.is_first);
        statuses.extend(all.into_iter().map(|status| status.with_device(it.device.clone())));
    }
    let pending = match asks {
        true => publish(call, attached, &statuses, &networks.which)?,
        false => None,
    };
    let Some(first) = attached.first() else { return Err(PluginError::NoAttachment) };
    let result = CniResult::parse(first.delegate.conf.version, &first.result)?;
    Ok((result.to_json(call.conf.cni_version)?, pending))
}

/// Writes network-status and events; returns a status that has to be written later.
///
/// The pod's policed networks must be known; for others a later try has to do. A pod that is gone gets nothing.
fn publish(
    call: &Call<'_>,
    attached: &[Attached],
    statuses: &[NetworkStatus],
    which: &Which,
) -> Result<Option<String>, PluginError> {
    let Some(source) = call.source.as_ref().filter(|_| call.has_pod_of_source()) else { return Ok(None) };
    let (pod, container_id) = (call.pod_or_sandbox()?, call.attachment()?.0);
    let text = annotation(statuses);
    let mut events = Vec::new();
    for it in attached {
        let result = CniResult::parse(it.delegate.conf.version, &it.result)?;
        let ips: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        let message = format!("Add {} [{}] from {}", it.delegate.ifname, ips.join(" "), it.delegate.label);
        events.push(Event { severity: Severity::Normal, reason: "AddedInterface".to_owned(), message });
    }
    if let Err(error) = source.publish(&pod, which, container_id, &text, &events) {
        // The mirror of a static pod comes and goes by itself, and the pod runs without it.
        let is_gone = matches!(error, ClusterError::PodGone { .. }) && !matches!(which, Which::MirrorOf(_));
        if is_gone || is_policed(call, attached)? {
            return Err(MetaError::from(error).into());
        }
        tracing::warn!(error = full(&error), "network-status is not written yet");
        for event in events {
            call.tell(event.severity, &event.reason, event.message);
        }
        return Ok(Some(text));
    }
    for Event { reason, message, .. } in &events {
        tracing::info!(reason, "{message}");
    }
    Ok(None)
}

/// Whether a zone is in force for one of them.
fn is_policed(call: &Call<'_>, attached: &[Attached]) -> Result<bool, PluginError> {
    let (records, container_id) = (Records::new(call.root), call.attachment()?.0);
    for it in attached {
        if records.read(container_id, &it.delegate.ifname)?.is_some_and(|record| record.zone.is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The pod with the UID that it has for those who describe it.
fn named_pod(call: &Call<'_>, which: &Which) -> Result<PodRef, PluginError> {
    let mut pod = call.pod_or_sandbox()?;
    if let (None, Which::Uid(uid) | Which::MirrorOf(uid)) = (&pod.uid, which) {
        pod.uid = Some(uid.clone());
    }
    Ok(pod)
}

/// Ends everything that has been begun, and reports what cannot be ended.
///
/// The last of them may have done a part of its work, and may have used up the time.
fn take_back(call: &Call<'_>, begun: &[Delegate], failed: PluginError) -> PluginError {
    let deadline = Instant::now() + UNDO;
    let call = &Call { path: call.path.clone(), source: call.source.clone(), deadline, ..*call };
    let mut errors = del::end(call, begun, None);
    // A plugin that could not be found for ADD has made nothing.
    errors
        .retain(|error| missing_plugin(error).is_none() || missing_plugin(error) != missing_plugin(&failed));
    if errors.is_empty() {
        let forgotten = call.attachment().and_then(|(container_id, _)| {
            del::forget_delegates(call)?;
            Ok(call.sandboxes().remove(container_id)?)
        });
        return match forgotten {
            Ok(_) => failed,
            Err(error) => PluginError::Undo { failed: Box::new(failed), left: vec![full(&error)] },
        };
    }
    // The record stays: DEL, which comes next, finds in it what to end.
    PluginError::Undo { failed: Box::new(failed), left: errors.iter().map(|error| full(error)).collect() }
}

/// The plugin that was not found, where that is what went wrong.
fn missing_plugin(error: &PluginError) -> Option<&str> {
    match error {
        PluginError::Meta(MetaError::Network { source, .. }) => missing_plugin(source),
        PluginError::Meta(MetaError::Delegate(DelegateError::NotFound { plugin, .. })) => Some(plugin),
        _ => None,
    }
}

/// Writes down what is going to be done, before the first of it.
///
/// For a pod that asks for nothing this is a courtesy to the next owner of the node: its DEL is that of the cluster
/// network, with a record or without, and a full disk must not keep it from starting.
fn remember(call: &Call<'_>, sandbox: &Sandbox, asks: bool) -> Result<(), PluginError> {
    let container_id = call.attachment()?.0;
    let write = || -> Result<(), PluginError> {
        call.sandboxes().write(sandbox, container_id)?;
        let cache = call.delegate_cache();
        // Where Multus executes us as its cluster network, the file is its own.
        if !cache.read(container_id)?.is_some_and(|there| del::is_of_a_meta(&there)) {
            cache.write(container_id, &sandbox.delegates)?;
        }
        Ok(())
    };
    match write() {
        Err(error) if !asks => {
            tracing::warn!(error = full(&error), "the pod's only network is not recorded");
            Ok(())
        }
        result => result,
    }
}

fn cache(call: &Call<'_>, it: &Attached, asks: bool) -> Result<(), PluginError> {
    let container_id = call.attachment()?.0;
    let netns = call.env.netns.as_ref().map(|path| path.display().to_string());
    let cached = CachedResult {
        config: Value::Object(it.delegate.conf.raw().clone()).to_string().into_bytes(),
        netns: netns.unwrap_or_default(),
        args: it.told.args.clone(),
        capabilities: without_annotations(&it.told.capabilities),
        result: Some(it.result.clone()),
    };
    match call.result_cache().write(&it.delegate.conf.name, container_id, &it.delegate.ifname, &cached) {
        Err(error) if !asks => {
            tracing::warn!(error = full(&error), "the result of the pod's only network is not cached");
            Ok(())
        }
        result => Ok(result?),
    }
}

fn without_annotations(capabilities: &Map<String, Value>) -> Map<String, Value> {
    let mut capabilities = capabilities.clone();
    capabilities.remove(POD_ANNOTATIONS);
    capabilities
}

fn sandbox(
    call: &Call<'_>,
    networks: &resolve::Networks,
    pod: Option<&Effects>,
) -> Result<Sandbox, PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let args = &call.env.args.pairs;
    let netns = match pod {
        Some(pod) => {
            let identity = pod.netns().identity()?;
            let path = pod.netns().path().to_owned();
            Some(state::Netns { path, dev: identity.dev, inode: identity.ino, cookie: pod.cookie() })
        }
        None => None,
    };
    Ok(Sandbox {
        container_id: container_id.to_string(),
        ifname: ifname.to_string(),
        phase: Phase::Adding,
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        boot_id: state::boot_id()?,
        netns,
        network: call.conf.name.to_string(),
        pod: call.pod().map(|pod| Pod { namespace: pod.namespace, name: pod.name, uid: pod.uid }),
        annotation: networks.annotation.clone(),
        delegates: networks.delegates.iter().map(Delegate::to_cached).collect(),
        args: args.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";"),
        runtime: without_annotations(&call.meta.runtime),
        path: call.path.clone(),
        cni_dir: Some(call.meta.cni_dir.clone()).filter(|dir| dir != Path::new(CNI_DIR)),
        pending_status: None,
        pending_events: Vec::new(),
    })
}

/// A name that is taken would be found by the plugin too, but after it has done other things.
fn refuse_taken_name(call: &Call<'_>, pod: &mut Effects, delegate: &Delegate) -> Result<(), PluginError> {
    match pod.sandbox().find_link(delegate.ifname.as_str())? {
        Some(_) => {
            let taken = PluginError::Exists { ifname: delegate.ifname.to_string() };
            Err(chain::of_network(call, delegate, Command::Add, taken))
        }
        None => Ok(()),
    }
}

fn wait_until_ready(call: &Call<'_>) -> Result<(), PluginError> {
    let Some(path) = &call.meta.readiness_indicator_file else { return Ok(()) };
    let path = call.root.join(&path.to_string_lossy());
    let deadline = call.deadline.min(Instant::now() + READINESS);
    while !path.exists() {
        if deadline <= Instant::now() {
            return Err(MetaError::NotReady { path }.into());
        }
        // Nobody tells when the file comes.
        std::thread::park_timeout(Duration::from_millis(100));
    }
    Ok(())
}
