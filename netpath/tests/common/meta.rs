//! A node with the meta-plugin, networks in a directory, and plugins that write down how they were called.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cni::{Call, STANDARD, Site};

/// An empty list.
pub(crate) const NOTHING: [&str; 0] = [];

/// Writes down environment and stdin, then answers as the files beside it say.
const FAKE: &str = r#"#!/bin/sh
name=${0##*/}
calls=${0%/*}/../calls
n=$(ls "$calls" | wc -l)
call=$(printf '%s/%04d' "$calls" "$n")
mkdir "$call"
echo "$name" > "$call/plugin"
env > "$call/env"
cat > "$call/stdin"
answer="${0%/*}/../answers/$name.$CNI_COMMAND"
if [ -e "$answer.fail" ]; then cat "$answer.fail"; exit 1; fi
if [ -e "$answer" ]; then cat "$answer"; exit 0; fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "'"$CNI_IFNAME"'", "mac": "02:00:00:00:00:0'"$n"'",'
    echo ' "sandbox": "'"$CNI_NETNS"'"}], "ips": [{"address": "10.8.0.'"$n"'/24", "interface": 0}]}'
fi
"#;

/// A call that a plugin wrote down.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) plugin: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) stdin: Value,
}

impl Recorded {
    /// `ADD first eth0`
    pub(crate) fn text(&self) -> String {
        format!("{} {} {}", self.var("CNI_COMMAND"), self.plugin, self.var("CNI_IFNAME"))
    }

    pub(crate) fn var(&self, name: &str) -> &str {
        self.env.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// A site with the meta-plugin.
pub(crate) struct MetaSite {
    pub(crate) site: Site,
}

impl MetaSite {
    /// The cluster network is one plugin, `first`, which only writes down.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let meta = Self { site: Site::new() };
        for dir in ["fake/bin", "fake/calls", "fake/answers", "nads", "etc/cni/net.d"] {
            fs::create_dir_all(meta.site.root.join(dir)).unwrap();
        }
        for name in ["first", "one", "two", "three"] {
            let path = meta.site.root.join("fake/bin").join(name);
            fs::write(&path, FAKE).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        meta.cluster(json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "first"}]}));
        meta
    }

    /// Replaces the cluster network.
    pub(crate) fn cluster(&self, conf: Value) {
        self.site.write(&self.site.root.join("etc/cni/net.d/10-first.conflist"), &conf.to_string());
    }

    /// Defines a network in namespace `web`.
    pub(crate) fn nad(&self, name: &str, config: Value) {
        self.nad_in("web", name, config);
    }

    pub(crate) fn nad_in(&self, namespace: &str, name: &str, config: Value) {
        self.nad_text_in(namespace, name, &config.to_string());
    }

    /// Defines a network in namespace `web`, the bytes of which matter.
    pub(crate) fn nad_text(&self, name: &str, config: &str) {
        self.nad_text_in("web", name, config);
    }

    fn nad_text_in(&self, namespace: &str, name: &str, config: &str) {
        let nad = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": name, "namespace": namespace},
                         "spec": {"config": config}});
        self.site
            .write(&self.site.root.join("nads").join(format!("{namespace}-{name}.json")), &nad.to_string());
    }

    /// What a plugin answers to a command; with `.fail` behind the command it fails.
    pub(crate) fn answer(&self, plugin: &str, command: &str, text: &str) {
        self.site.write(&self.answer_file(plugin, command), text);
    }

    pub(crate) fn no_answer(&self, plugin: &str, command: &str) {
        fs::remove_file(self.answer_file(plugin, command)).unwrap();
    }

    fn answer_file(&self, plugin: &str, command: &str) -> PathBuf {
        self.site.root.join("fake/answers").join(format!("{plugin}.{command}"))
    }

    /// The meta-plugin's configuration, with keys added, for a pod with this annotation.
    pub(crate) fn conf(&self, annotation: &str, keys: Value) -> Value {
        let annotations = match annotation {
            "" => json!({}),
            text => json!({"k8s.v1.cni.cncf.io/networks": text}),
        };
        let mut conf = json!({"cniVersion": "1.0.0", "name": "cluster", "type": "netpath",
            "clusterNetwork": "/etc/cni/net.d/10-first.conflist", "networks": "/nads",
            "allowedDataDirs": [self.site.root.path()], "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}});
        for (key, value) in keys.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// A call for pod `web/p`, first interface `eth0`.
    pub(crate) fn call(&self, command: &str, conf: &Value) -> Call {
        let path = format!("{}:{STANDARD}", self.site.root.join("fake/bin").display());
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";
        self.site.ours(command, conf).ifname("eth0").env("CNI_PATH", &path).args(args)
    }

    /// What was called so far, in its order.
    pub(crate) fn calls(&self) -> Vec<Recorded> {
        let mut dirs: Vec<PathBuf> = fs::read_dir(self.site.root.join("fake/calls"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        dirs.sort();
        dirs.iter().map(|dir| recorded(dir)).collect()
    }

    /// The same in words, and forgets it.
    pub(crate) fn said(&self) -> Vec<String> {
        let said = self.calls().iter().map(Recorded::text).collect();
        for entry in fs::read_dir(self.site.root.join("fake/calls")).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        said
    }

    /// Files that remember a sandbox, ours, Multus's and the directory's.
    pub(crate) fn remembered(&self) -> Vec<String> {
        let files = self.site.files().into_keys().map(|path| path.to_str().unwrap().to_owned());
        let is_kept = |path: &String| {
            (path.starts_with("var/lib") && !path.starts_with("var/lib/netpath/promisc"))
                || (path.starts_with("run/netpath") && path != "run/netpath/bpffs")
        };
        files.filter(is_kept).collect()
    }

    /// What became of the sandbox: network-status and events.
    #[track_caller]
    pub(crate) fn outcome(&self) -> Value {
        let text = fs::read_to_string(self.site.root.join("run/netpath/sandboxes/c1.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let text =
            self.outcome()["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap().to_owned();
        serde_json::from_str(&text).unwrap()
    }

    /// Names of the links in the pod.
    pub(crate) fn links(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.site.pod.ip("-j link show")).unwrap();
        links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    }
}

fn recorded(dir: &Path) -> Recorded {
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let env = text("env");
    let pairs = env.lines().filter_map(|line| line.split_once('='));
    Recorded {
        plugin: text("plugin").trim().to_owned(),
        env: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        stdin: serde_json::from_str(&text("stdin")).unwrap(),
    }
}
