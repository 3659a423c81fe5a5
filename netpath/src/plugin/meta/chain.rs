//! Runs the plugins of one network, as a runtime would.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::{Call, MetaError, PLUGIN, PluginError, masters, resolve::is_in_process};
use crate::{
    causes::full,
    delegate,
    kernel::pdeathsig,
    plugin::{Origin, serve},
    spec::{CniArgs, CniEnv, CniVersion, Command, Delegate},
};

/// What the plugins of a network are told besides their configuration.
pub(super) struct Told {
    /// CNI_ARGS.
    pub(super) args: Vec<(String, String)>,
    /// For capabilities.
    pub(super) capabilities: Map<String, Value>,
}

/// ADD: the plugins in their order, each with the result of the one before. Returns the last's.
pub(super) fn add(call: &Call<'_>, delegate: &Delegate, told: &Told) -> Result<Value, PluginError> {
    let mut prev: Option<Value> = None;
    for index in 0..delegate.conf.plugins.len() {
        let stdin = delegate.conf.stdin(index, &told.capabilities, prev.as_ref());
        masters::refuse(call, delegate, index)?;
        prev = one(call, Command::Add, delegate, index, stdin, told, call.left(1))?;
    }
    let mut result = prev.unwrap_or_default();
    if let Some(map) = result.as_object_mut() {
        // Some plugins print no version; it is that of the configuration then.
        map.entry("cniVersion").or_insert_with(|| delegate.conf.version.as_str().into());
    }
    Ok(result)
}

/// DEL: the plugins in reverse, every one of them.
pub(super) fn del(
    call: &Call<'_>,
    delegate: &Delegate,
    told: &Told,
    prev: Option<&Value>,
    share: u32,
) -> Vec<PluginError> {
    let prev = prev.filter(|_| CniVersion::V0_4_0 <= delegate.conf.version);
    let mut errors = Vec::new();
    let count = u32::try_from(delegate.conf.plugins.len()).unwrap_or(u32::MAX);
    for index in (0..delegate.conf.plugins.len()).rev() {
        let stdin = delegate.conf.stdin(index, &told.capabilities, prev);
        let within = call.left(share.saturating_mul(count));
        errors.extend(one(call, Command::Del, delegate, index, stdin, told, within).err());
    }
    errors
}

/// CHECK: the plugins in their order, with the result of ADD.
pub(super) fn check(
    call: &Call<'_>,
    delegate: &Delegate,
    told: &Told,
    prev: Option<&Value>,
) -> Result<(), PluginError> {
    if delegate.conf.disable_check || delegate.conf.version < CniVersion::V0_4_0 {
        return Ok(());
    }
    for index in 0..delegate.conf.plugins.len() {
        let stdin = delegate.conf.stdin(index, &told.capabilities, prev);
        one(call, Command::Check, delegate, index, stdin, told, call.left(1))?;
    }
    Ok(())
}

/// Runs one plugin: in this process where it is ours, else as a child.
pub(super) fn one(
    call: &Call<'_>,
    command: Command,
    delegate: &Delegate,
    index: usize,
    stdin: Map<String, Value>,
    told: &Told,
    within: Duration,
) -> Result<Option<Value>, PluginError> {
    let kind = delegate.conf.plugins[index].kind.as_str();
    let pairs: Vec<String> = told.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let args = pairs.join(";");
    let stdin = Value::Object(stdin).to_string();
    let attachment = call.attachment().ok().map(|(container_id, _)| (container_id, &delegate.ifname));
    if within.is_zero() {
        return Err(MetaError::Late { plugin: kind.to_owned() }.into());
    }
    if is_in_process(kind) {
        let env = CniEnv {
            command,
            container_id: attachment.map(|(container_id, _)| container_id.clone()),
            ifname: attachment.map(|(_, ifname)| ifname.clone()),
            args: match command {
                Command::Add | Command::Check => CniArgs::parse(&args)?,
                _ => CniArgs::parse_leniently(&args),
            },
            path: call.path.clone(),
            ..call.env.clone()
        };
        let deadline = Some(Instant::now() + within);
        let origin = Origin { depth: call.depth, nad: delegate.nad(), deadline };
        return serve(call.root, env, stdin.as_bytes(), &origin);
    }
    let child = delegate::Call {
        command,
        path: &call.path,
        attachment,
        netns: call.env.netns.as_deref(),
        args: &args,
        version: delegate.conf.version,
        depth: call.depth + 1,
        within,
        lead: pdeathsig::lead_group,
    };
    let stdout = delegate::run(kind, &child, stdin.as_bytes()).map_err(MetaError::from)?;
    match command {
        Command::Add => Ok(Some(delegate::result(kind, &stdout).map_err(MetaError::from)?)),
        _ => Ok(None),
    }
}

impl Call<'_> {
    /// The time for one of `parts` plugins that are still to come.
    pub(super) fn left(&self, parts: u32) -> Duration {
        (self.deadline.saturating_duration_since(Instant::now()) / parts.max(1)).min(PLUGIN)
    }

    /// What a network is told of this pod.
    pub(super) fn told(&self, delegate: &Delegate) -> Result<Told, PluginError> {
        Ok(Told {
            args: delegate.args(&self.env.args),
            capabilities: self.capabilities(delegate, &self.meta.runtime)?,
        })
    }

    /// What a plugin may be told in `runtimeConfig`, with the file of its device, which only the container makes known.
    pub(super) fn capabilities(
        &self,
        delegate: &Delegate,
        runtime: &Map<String, Value>,
    ) -> Result<Map<String, Value>, PluginError> {
        let mut all = delegate.capabilities(runtime);
        if let Some(file) = self.device_infos().file(delegate, self.attachment()?.0) {
            all.insert("CNIDeviceInfoFile".to_owned(), file.display().to_string().into());
        }
        Ok(all)
    }
}

/// An error of one network, with the pod and the network named.
pub(super) fn of_network(
    call: &Call<'_>,
    delegate: &Delegate,
    command: Command,
    error: PluginError,
) -> PluginError {
    let (doing, preposition) = match command {
        Command::Add => ("adding", "to"),
        Command::Del => ("deleting", "from"),
        _ => ("checking", "in"),
    };
    MetaError::Network {
        pod: call.pod_text(),
        network: delegate.label.clone(),
        doing,
        preposition,
        source: Box::new(error),
    }
    .into()
}

/// All errors of an ending in one.
pub(super) fn join(errors: Vec<PluginError>) -> Result<(), PluginError> {
    let Some(first) = errors.first() else { return Ok(()) };
    let code = first.cni_code();
    let failures = errors.iter().map(|error| full(error)).collect();
    Err(MetaError::Del { failures, code }.into())
}
