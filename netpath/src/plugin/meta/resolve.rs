//! Which networks a pod gets.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Call, MetaError, PluginError, devices::Given};
use crate::{
    causes::full,
    cluster::{ClusterError, Which},
    plan,
    plugin::{CHAINED, MACVLAN},
    spec::{
        ClusterNetwork, ConfError, Delegate, Nad, NetworkConf, PodRef, Selection, Severity,
        annotation::{DEFAULT_NETWORK, NETWORKS, parse_default_network, parse_networks, parse_reference},
        json::View,
        names::check_file_name,
    },
    state::ResultCache,
    whole,
};

/// Meta-plugins: they execute others, perhaps us.
const METAS: [&str; 2] = ["multus", "multus-shim"];
/// Says where a static pod comes from; its UID is not the API's.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// The hash of a static pod's manifest, which its mirror in the API names too.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The networks of a pod, in the order in which they are attached.
pub(super) struct Networks {
    pub(super) delegates: Vec<Delegate>,
    /// The annotation by which they were chosen.
    pub(super) annotation: Option<String>,
    /// Which pod of this name it is.
    pub(super) which: Which,
    /// Whether they are other than the cluster network alone: then DEL needs a record.
    pub(super) is_asked_for: bool,
}

/// A configuration with what it is called.
struct Found {
    label: String,
    nad_namespace: Option<String>,
    resource: Option<String>,
    conf: NetworkConf,
}

/// Finds everything that the pod wants, and refuses what cannot be had, before anything is done.
pub(super) fn networks(call: &Call<'_>) -> Result<Networks, PluginError> {
    let pod = call.pod_or_sandbox()?;
    let (annotations, uid) = annotations(call, &pod)?;
    let which = which(&pod, &annotations, uid);
    let multus_namespace = &call.meta.multus_namespace;
    let (text, selections) = match annotations.get(NETWORKS) {
        None => (None, Vec::new()),
        Some(text) => (Some(text.clone()), lenient(call, parse_networks(text, &pod.namespace), Vec::new())?),
    };
    let replaced = match annotations.get(DEFAULT_NETWORK) {
        None => None,
        Some(text) => lenient(call, parse_default_network(text, multus_namespace), None)?,
    };

    let is_replaced = replaced.is_some();
    // (the network, what the pod asks of it, whether the pod chose it)
    let mut found: Vec<(Found, Selection, bool)> = Vec::new();
    match (replaced, &call.meta.cluster) {
        (Some(selection), _) => {
            // The namespace of cluster-wide networks has what is meant for it.
            if selection.namespace != *multus_namespace {
                refuse_isolated(call, &pod, &selection)?;
            }
            found.push((nad(call, &selection)?, selection, true));
        }
        (None, ClusterNetwork::Named(name)) => {
            found.push((cluster_network(call, name)?, Selection::default(), false));
        }
        (None, ClusterNetwork::Delegates(all)) => {
            let plain = |conf: &NetworkConf| {
                let label = conf.name.to_string();
                (
                    Found { label, nad_namespace: None, resource: None, conf: conf.clone() },
                    Selection::default(),
                    false,
                )
            };
            found.extend(all.iter().map(plain));
        }
    }
    for (conf, _, _) in &found {
        refuse_meta(conf, true)?;
    }
    for name in call.meta.defaults_for(&pod.namespace) {
        found.push((named(call, name)?, Selection::default(), false));
    }
    for selection in selections {
        refuse_isolated(call, &pod, &selection)?;
        found.push((nad(call, &selection)?, selection, true));
    }
    let delegates = assign(call, found)?;
    plan::check_gateways(delegates.iter().filter_map(|it| it.selection.default_route.as_deref()))
        .map_err(MetaError::from)?;
    let is_asked_for = is_replaced || 1 < delegates.len();
    if is_asked_for {
        delegates.iter().try_for_each(|delegate| refuse_long_names(call, delegate))?;
    }
    Ok(Networks { delegates, annotation: text, which, is_asked_for })
}

/// A pod may use networks of some namespaces only, where the administrator says so.
fn refuse_isolated(call: &Call<'_>, pod: &PodRef, selection: &Selection) -> Result<(), MetaError> {
    match call.meta.may_use(&pod.namespace, &selection.namespace) {
        true => Ok(()),
        false => {
            let (pod, nad) = (pod.namespace.clone(), selection.namespace.clone());
            Err(MetaError::Isolated { pod, nad })
        }
    }
}

/// Refuses what could not be found again: there are files that have the names of network, sandbox and interface.
fn refuse_long_names(call: &Call<'_>, delegate: &Delegate) -> Result<(), PluginError> {
    let container_id = call.attachment()?.0;
    let result = ResultCache::file_name(&delegate.conf.name, container_id, &delegate.ifname);
    let checked = check_file_name("name", &result).and_then(|()| match delegate.device_file(container_id) {
        Some(device) => check_file_name("name", &device),
        None => Ok(()),
    });
    Ok(checked.map_err(|source| MetaError::Conf { network: delegate.label.clone(), source })?)
}

/// Names the interfaces, and holds each network against what it may be.
fn assign(call: &Call<'_>, found: Vec<(Found, Selection, bool)>) -> Result<Vec<Delegate>, PluginError> {
    let first = call.attachment()?.1;
    let mut delegates = Vec::new();
    let mut owners: HashMap<String, String> = HashMap::new();
    let mut given = match found.iter().any(|(found, _, _)| found.resource.is_some()) {
        true => Given::to(call)?,
        false => Given::default(),
    };
    for (index, (found, mut selection, is_chosen)) in found.into_iter().enumerate() {
        refuse_meta(&found, false)?;
        if let Some(resource) = &found.resource {
            let device = given.next(call, &found.label, resource, selection.device_id.take())?;
            selection.device_id = Some(device);
        }
        for plugin in &found.conf.plugins {
            let checked = plugin.check_ipam().and_then(|()| match found.nad_namespace {
                None => Ok(()),
                Some(_) => call
                    .meta
                    .check_type("type", &plugin.kind)
                    .and_then(|()| call.meta.check_ipam(plugin))
                    .and_then(|()| call.meta.check_data_dir(plugin)),
            });
            checked.map_err(|source| MetaError::Conf { network: found.label.clone(), source })?;
        }
        let Found { label, nad_namespace, conf, resource } = found;
        let delegate = Delegate::new(index, first, label, nad_namespace, conf, selection)?;
        let delegate = Delegate { resource, ..delegate };
        if let Some(wish) = delegate.unheard().first().filter(|_| is_chosen) {
            let unheard = MetaError::Unheard { network: delegate.label.clone(), wish };
            match call.meta.strict_capabilities {
                true => return Err(unheard.into()),
                false => call.tell(Severity::Warning, "CapabilityNotDeclared", unheard.to_string()),
            }
        }
        if let Some(owner) = owners.insert(delegate.ifname.to_string(), delegate.label.clone()) {
            let ifname = delegate.ifname.to_string();
            return Err(MetaError::SameName { ifname, first: owner, second: delegate.label }.into());
        }
        delegates.push(delegate);
    }
    Ok(delegates)
}

/// The network that every pod gets first, as a file says it, else as the last ADD found it. The API is asked where
/// neither is there.
pub(super) fn first(call: &Call<'_>) -> Result<(String, NetworkConf), PluginError> {
    if let Some(first) = first_on_node(call)? {
        return Ok(first);
    }
    let ClusterNetwork::Named(name) = &call.meta.cluster else { return Err(PluginError::NoAttachment) };
    if let Some(kept) = call.first_network().read(name)? {
        return Ok(kept);
    }
    let found = cluster_network(call, name)?;
    refuse_meta(&found, true)?;
    Ok((found.label, found.conf))
}

/// The same where the node itself can say it; `None` where only the API can.
pub(super) fn first_on_node(call: &Call<'_>) -> Result<Option<(String, NetworkConf)>, PluginError> {
    let name = match &call.meta.cluster {
        ClusterNetwork::Named(name) => name,
        ClusterNetwork::Delegates(all) => {
            return Ok(all.first().map(|conf| (conf.name.to_string(), conf.clone())));
        }
    };
    let is_elsewhere = !name.starts_with('/') && call.meta.networks.is_none() && call.source.is_some();
    let found = match on_node(call, name) {
        Some(found) => found,
        None if is_elsewhere => return Ok(None),
        None => named(call, name)?,
    };
    refuse_meta(&found, true)?;
    Ok(Some((found.label, found.conf)))
}

/// Whether a configuration executes others, perhaps us.
pub(super) fn meta_in(conf: &NetworkConf, is_first: bool) -> Option<&str> {
    let is_meta = |kind: &str, raw| {
        let view = View::root(raw);
        METAS.contains(&kind)
            || (kind == CHAINED
                && (is_first || view.get("clusterNetwork").is_some() || view.get("delegates").is_some()))
    };
    conf.plugins.iter().find(|plugin| is_meta(&plugin.kind, plugin.raw())).map(|plugin| plugin.kind.as_str())
}

fn refuse_meta(found: &Found, is_first: bool) -> Result<(), MetaError> {
    match meta_in(&found.conf, is_first) {
        Some(kind) => Err(MetaError::MetaInside { network: found.label.clone(), kind: kind.to_owned() }),
        None => Ok(()),
    }
}

type Annotations = HashMap<String, String>;

/// What the pod's annotations say, and its UID where the source was asked. The runtime may pass them; asking the
/// source is the second best.
fn annotations(call: &Call<'_>, pod: &PodRef) -> Result<(Annotations, Option<String>), PluginError> {
    if let Some(passed) = &call.meta.annotations {
        let text =
            |(key, value): (&String, &serde_json::Value)| Some((key.clone(), value.as_str()?.to_owned()));
        return Ok((passed.iter().filter_map(text).collect(), None));
    }
    if let Some(text) = asked_by_args(call) {
        return Ok(([(NETWORKS.to_owned(), text)].into(), None));
    }
    let Some(source) = call.source.as_ref().filter(|_| call.has_pod_of_source()) else {
        return Ok((HashMap::new(), None));
    };
    let unknown = || MetaError::UnknownPod { namespace: pod.namespace.clone(), name: pod.name.clone() };
    let known = source.pod(pod).map_err(MetaError::from)?.ok_or_else(unknown)?;
    let annotations: Annotations = known.annotations.into_iter().collect();
    if let (Some(expected), Some(found), false) = (&pod.uid, &known.uid, is_static(&annotations))
        && expected != found
    {
        let pod = format!("{}/{}", pod.namespace, pod.name);
        return Err(MetaError::Uid { pod, expected: expected.clone(), found: found.clone() }.into());
    }
    Ok((annotations, known.uid))
}

/// `NETWORKS` of CNI_ARGS: for who calls plugins by hand or by `cnitool`. In a cluster the pod alone says it.
fn asked_by_args(call: &Call<'_>) -> Option<String> {
    call.meta.networks.as_ref()?;
    let pairs = &call.env.args.pairs;
    pairs.iter().rev().find(|(key, _)| key == "NETWORKS").map(|(_, text)| text.clone())
}

/// Whether kubelet has the pod from elsewhere than the API.
fn is_static(annotations: &Annotations) -> bool {
    annotations.get(CONFIG_SOURCE).is_some_and(|it| it != "api")
}

/// What tells the pod from a later one of its name.
fn which(pod: &PodRef, annotations: &Annotations, known: Option<String>) -> Which {
    match is_static(annotations) {
        true => match annotations.get(CONFIG_HASH).cloned().or_else(|| pod.uid.clone()) {
            Some(hash) => Which::MirrorOf(hash),
            None => Which::Any,
        },
        false => pod.uid.clone().or(known).map_or(Which::Any, Which::Uid),
    }
}

/// An annotation that cannot be read fails the pod: without its interface it would run unpoliced.
fn lenient<T>(call: &Call<'_>, parsed: Result<T, ConfError>, nothing: T) -> Result<T, PluginError> {
    match parsed {
        Err(error) if call.meta.ignore_invalid_annotation => {
            call.tell(Severity::Warning, "InvalidAnnotation", full(&error));
            Ok(nothing)
        }
        parsed => Ok(parsed?),
    }
}

/// The network of a NAD.
fn nad(call: &Call<'_>, selection: &Selection) -> Result<Found, PluginError> {
    let (namespace, name) = (&selection.namespace, &selection.name);
    let Some(source) = &call.source else {
        return Err(
            MetaError::NoSource { what: format!("the pod asks for network {namespace}/{name}") }.into()
        );
    };
    match source.nad(namespace, name) {
        Ok(nad) => of_nad(call, nad),
        Err(error) => {
            if matches!(error, ClusterError::NoNad { .. }) {
                call.tell(Severity::Warning, "NoNetworkFound", error.to_string());
            }
            Err(MetaError::from(error).into())
        }
    }
}

/// What this node is called in `perNode` of a network.
fn node_name(call: &Call<'_>) -> String {
    let host = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    call.meta.node_name.clone().unwrap_or_else(host)
}

fn of_nad(call: &Call<'_>, nad: Nad) -> Result<Found, PluginError> {
    let label = format!("{}/{}", nad.namespace, nad.name);
    let wrong = |source| MetaError::Conf { network: label.clone(), source };
    let conf = match &nad.config {
        Some(text) => NetworkConf::parse_new(text.as_bytes(), Some(&nad.name)).map_err(wrong)?,
        None => by_name(&conf_dir(call), &nad.name).map_err(|error| match error {
            MetaError::Io { ref source, .. } if source.kind() != ErrorKind::NotFound => error,
            _ => {
                let (network, name) = (label.clone(), nad.name.clone());
                MetaError::NoConfig { network, name, directory: conf_dir(call) }
            }
        })?,
    };
    let conf = conf.for_node(|| node_name(call)).map_err(wrong)?;
    Ok(Found { label, nad_namespace: Some(nad.namespace), resource: nad.resource_name, conf })
}

/// The network of every pod. A file of that name comes before a NAD: a pod that asks for nothing needs no API.
fn cluster_network(call: &Call<'_>, name: &str) -> Result<Found, PluginError> {
    if let Some(found) = on_node(call, name) {
        return Ok(found);
    }
    let found = named(call, name)?;
    if found.nad_namespace.is_some()
        && call.meta.networks.is_none()
        && let Err(error) = call.first_network().keep(name, &found.label, &found.conf)
    {
        // DEL asks the API then.
        tracing::warn!(error = full(&error), "the first network is not kept");
    }
    Ok(found)
}

/// The configuration of this name that lies on the node.
fn on_node(call: &Call<'_>, name: &str) -> Option<Found> {
    if name.starts_with('/') {
        return None;
    }
    by_name(&conf_dir(call), name).ok().map(plain)
}

/// A network of the administrator: an absolute path, or the name of a NAD, or that of a configuration.
fn named(call: &Call<'_>, name: &str) -> Result<Found, PluginError> {
    if name.starts_with('/') {
        let path = call.root.join(name);
        let file = match path.is_dir() {
            true => files(&path)?
                .into_iter()
                .next()
                .ok_or_else(|| MetaError::NoConf { name: "*".to_owned(), directory: path.clone() })?,
            false => path,
        };
        return Ok(plain(read(&file)?));
    }
    if let Some(source) = &call.source {
        let reference = parse_reference("clusterNetwork", name, &call.meta.multus_namespace);
        // A configuration's name may have characters that no NAD's has.
        match reference.map(|it| source.nad(&it.namespace, &it.name)) {
            Ok(Ok(nad)) => return of_nad(call, nad),
            Ok(Err(ClusterError::NoNad { .. })) | Err(_) => {}
            Ok(Err(error)) => return Err(MetaError::from(error).into()),
        }
    }
    Ok(plain(by_name(&conf_dir(call), name)?))
}

fn plain(conf: NetworkConf) -> Found {
    Found { label: conf.name.to_string(), nad_namespace: None, resource: None, conf }
}

fn conf_dir(call: &Call<'_>) -> PathBuf {
    call.root.join(&call.meta.conf_dir.to_string_lossy())
}

/// The configuration in a directory that has this `name`. One that cannot be read is somebody else's trouble.
fn by_name(directory: &Path, name: &str) -> Result<NetworkConf, MetaError> {
    let missing = || MetaError::NoConf { name: name.to_owned(), directory: directory.to_owned() };
    for file in files(directory)? {
        match read(&file) {
            Ok(conf) if conf.name.as_str() == name => return Ok(conf),
            Ok(_) => {}
            Err(error) => tracing::warn!(error = full(&error), "a network configuration is passed over"),
        }
    }
    Err(missing())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, MetaError> {
    let io = |source| MetaError::Io { what: "list", path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        files.push(entry.map_err(io)?.path());
    }
    files.retain(|path| path.extension().is_some_and(|it| it == "conf" || it == "conflist" || it == "json"));
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<NetworkConf, MetaError> {
    let text =
        whole::bytes(file).map_err(|source| MetaError::Io { what: "read", path: file.to_owned(), source })?;
    NetworkConf::parse_new(&text, None)
        .map_err(|source| MetaError::Conf { network: file.display().to_string(), source })
}

/// Whether we run the plugin ourselves. What it polices is policed the same way, executed or not.
pub(super) fn is_in_process(kind: &str) -> bool {
    kind == MACVLAN || kind == CHAINED
}
