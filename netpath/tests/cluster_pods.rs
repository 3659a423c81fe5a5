//! Pods of a real Kubernetes that ask for networks, and what `kubectl` shows of it.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/kube.rs"]
mod kube;
#[path = "common/site.rs"]
mod site;

use std::collections::BTreeSet;

use common::eventually;
use kube::{Kube, Namespace, PATIENCE, example};
use serde_json::{Value, json};
use site::{macvlan, private};

const NODE: &str = "worker01";

/// A private network; each test has a part of the addresses, since all are on one wire.
fn network(part: u8, keys: &Value) -> Value {
    let mut conf = macvlan(&json!({"zone": {"policy": "private"}}));
    conf["ipam"]["rangeStart"] = json!(format!("10.12.34.{part}"));
    conf["ipam"]["rangeEnd"] = json!(format!("10.12.34.{}", part + 9));
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

#[test]
fn the_labs_network_and_pod_as_they_stand() {
    let kube = Kube::new();
    let lab = Namespace::new(&kube, "lab");
    lab.apply(&example("nad-privatezone.yaml"));
    // There is no registry to ask whether the image is the newest.
    let image = "image: nicolaka/netshoot";
    lab.apply(&example("pod-net.yaml").replace(image, &format!("{image}\n      imagePullPolicy: Never")));
    lab.ready("net-pod");
    let status = lab.network_status("net-pod");
    let pod = lab.try_get("pod", "net-pod").unwrap();
    assert_eq!(
        status[0],
        json!({"name": "cbr0", "interface": "eth0", "ips": [pod["status"]["podIP"]],
        "mac": status[0]["mac"], "default": true, "dns": {}, "gateway": status[0]["gateway"]})
    );
    let address = status[1]["ips"][0].as_str().unwrap().to_owned();
    assert_eq!(
        (&status[1]["name"], &status[1]["interface"]),
        (&json!("lab/privatezone-macvlan-conf"), &json!("net1"))
    );
    assert!(address.starts_with("10.12.34.2"), "{address}");
    // Without a zone it is as it was: the gateway is reached, and what lies behind it.
    for destination in ["10.12.34.254", "10.12.34.10", "8.8.8.8"] {
        lab.exec("net-pod", &format!("ping -c 1 -W 3 -I net1 {destination}")).unwrap();
    }
    let event = lab.event("net-pod", "AddedInterface", "Add net1");
    assert_eq!(event["message"], json!(format!("Add net1 [{address}/24] from lab/privatezone-macvlan-conf")));
    let told = lab.kubectl(&["describe", "pod", "net-pod"], "");
    assert!(told.contains("AddedInterface") && told.contains("Add net1 ["), "{told}");
    assert!(told.contains("\"interface\": \"net1\""), "the annotation is there to be read: {told}");
    // With a zone, and the same names: for pods that come from now on.
    lab.apply(&example("nad-privatezone-policed.yaml"));
    lab.pod("policed", NODE, "privatezone-macvlan-conf");
    lab.ready("policed");
    lab.exec("policed", "ping -c 1 -W 3 -I net1 10.12.34.254").unwrap();
    lab.exec("policed", "ping -c 2 -W 1 -I net1 8.8.8.8").expect_err("is outside the zone");
    lab.exec("policed", "ping -c 1 -W 3 8.8.8.8").unwrap();
    let drops = kube.node(NODE).tool("drops");
    let ours = drops["drops"].as_array().unwrap().iter().find(|drop| drop["namespace"] == "lab").cloned();
    let ours = ours.unwrap_or_else(|| panic!("{drops}"));
    assert_eq!((&ours["name"], &ours["reason"]), (&json!("policed"), &json!("zone-deny")));
    for pod in ["net-pod", "policed"] {
        lab.delete(pod);
    }
    eventually(PATIENCE, "the row goes with the pod", || (lab.rows(&kube.node(NODE)) == 0).then_some(()));
}

#[test]
fn every_form_of_the_annotation() {
    let kube = Kube::new();
    let (forms, elsewhere) = (Namespace::new(&kube, "forms"), Namespace::new(&kube, "elsewhere"));
    forms.nad("mv", &network(120, &json!({"capabilities": {"ips": true, "mac": true}})));
    elsewhere.nad("mv", &network(130, &json!({"name": "mv-elsewhere"})));
    let pods = [
        ("short", "mv"),
        ("named", "mv@eth7"),
        ("twice", "mv,mv"),
        ("other", "elsewhere/mv"),
        ("both", "mv, elsewhere/mv@second"),
        ("json", r#"[{"name": "mv", "interface": "data0"}]"#),
        ("asks", r#"[{"name": "mv", "ips": ["10.12.34.128/24"], "mac": "02:00:5e:00:00:28"}]"#),
        ("route", r#"[{"name": "mv", "default-route": ["10.12.34.254"]}]"#),
        ("args", r#"[{"name": "mv", "namespace": "forms", "cni-args": {"mode": "bridge"}}]"#),
    ];
    for (name, networks) in pods {
        forms.pod(name, NODE, networks);
    }
    let interfaces = |pod: &str| -> Vec<(String, String)> {
        forms.ready(pod);
        let status = forms.network_status(pod);
        let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
        status
            .as_array()
            .unwrap()
            .iter()
            .skip(1)
            .map(|it| (text(it, "name"), text(it, "interface")))
            .collect()
    };
    let own = |interface: &str| ("forms/mv".to_owned(), interface.to_owned());
    let others = |interface: &str| ("elsewhere/mv".to_owned(), interface.to_owned());
    assert_eq!(interfaces("short"), [own("net1")]);
    assert_eq!(interfaces("named"), [own("eth7")]);
    assert_eq!(interfaces("twice"), [own("net1"), own("net2")]);
    assert_eq!(interfaces("other"), [others("net1")]);
    assert_eq!(interfaces("both"), [own("net1"), others("second")]);
    assert_eq!(interfaces("json"), [own("data0")]);
    assert_eq!(interfaces("args"), [own("net1")]);
    assert_eq!(interfaces("asks"), [own("net1")]);
    let status = forms.network_status("asks");
    assert_eq!(
        (&status[1]["ips"], &status[1]["mac"]),
        (&json!(["10.12.34.128"]), &json!("02:00:5e:00:00:28"))
    );
    let link = forms.exec("asks", "ip link show net1").unwrap();
    assert!(link.contains("02:00:5e:00:00:28"), "{link}");
    assert_eq!(interfaces("route"), [own("net1")]);
    let routes = forms.exec("route", "ip route show default").unwrap();
    assert!(routes.lines().next().unwrap().contains("via 10.12.34.254 dev net1"), "{routes}");
    assert_eq!(forms.rows(&kube.node(NODE)), 11);
    forms.kubectl(&["delete", "pods", "--all", "--wait=false"], "");
    for (name, _) in pods {
        forms.gone(name);
    }
    eventually(PATIENCE, "no row is left", || (forms.rows(&kube.node(NODE)) == 0).then_some(()));
}

#[test]
fn a_network_that_is_missing_is_named_until_it_is_there() {
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "missing");
    namespace.pod("p", NODE, "later");
    let text = "cannot find a network-attachment-definition (later) in namespace (missing)";
    namespace.event("p", "FailedCreatePodSandBox", text);
    namespace.event("p", "NoNetworkFound", "later");
    let pod = namespace.try_get("pod", "p").unwrap();
    assert_eq!(pod["status"]["phase"], "Pending");
    namespace.nad("later", &network(140, &json!({})));
    namespace.ready("p");
    assert_eq!(namespace.network_status("p")[1]["name"], "missing/later");
    namespace.delete("p");
}

#[test]
fn a_pod_ends_without_its_network_and_by_force() {
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "ends");
    namespace.nad("mv", &network(150, &json!({})));
    for pod in ["orphan", "forced"] {
        namespace.pod(pod, NODE, "mv");
    }
    for pod in ["orphan", "forced"] {
        namespace.ready(pod);
    }
    namespace.kubectl(&["delete", "net-attach-def", "mv"], "");
    namespace.delete("orphan");
    namespace.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"], "");
    let node = kube.node(NODE);
    eventually(PATIENCE, "rows and addresses are gone", || {
        let left = node.sh("ls /var/lib/cni/networks/mv | grep '^10.12.34.15' || :");
        (namespace.rows(&node) == 0 && left.is_empty()).then_some(())
    });
}

#[test]
fn an_annotation_that_cannot_be_read_starts_no_pod() {
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "unreadable");
    namespace.pod("p", NODE, r#"[{"nme": "mv"}]"#);
    let event = namespace.event("p", "FailedCreatePodSandBox", "name");
    assert!(event["message"].as_str().unwrap().contains("netpath"), "{event}");
    let pod = namespace.try_get("pod", "p").unwrap();
    assert_eq!((&pod["status"]["phase"], &pod["status"]["podIP"]), (&json!("Pending"), &Value::Null));
    namespace.delete("p");
}

#[test]
fn netpath_may_do_what_it_needs_and_nothing_else() {
    let kube = Kube::new();
    let may_as = |account: &str, verb: &str, what: &str| {
        let who = format!("--as=system:serviceaccount:netpath:{account}");
        let (what, part) = what.split_once('/').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        // Says `no` by its exit code as well.
        kube.try_kubectl(&["auth", "can-i", verb, what, &part, "--all-namespaces", &who], "").is_ok()
    };
    let may = |verb: &str, what: &str| may_as("netpath", verb, what);
    let nads = "network-attachment-definitions.k8s.cni.cncf.io";
    for (verb, what) in
        [("get", nads), ("get", "pods"), ("patch", "pods/status"), ("create", "events"), ("patch", "events")]
    {
        assert!(may(verb, what), "{verb} {what}");
    }
    for (verb, what) in [
        ("list", nads),
        ("watch", nads),
        ("create", nads),
        ("patch", nads),
        ("list", "pods"),
        ("patch", "pods"),
        ("update", "pods/status"),
        ("create", "pods"),
        ("delete", "pods"),
        ("get", "secrets"),
        ("get", "nodes"),
        ("create", "serviceaccounts/token"),
    ] {
        assert!(!may(verb, what), "{verb} {what}");
    }
    // The agent reads what the plugin may not list, and writes nothing itself.
    for (verb, what) in [("list", nads), ("watch", nads), ("list", "pods"), ("watch", "pods")] {
        assert!(may_as("netpath-agent", verb, what), "{verb} {what}");
    }
    for (verb, what) in [
        ("patch", nads),
        ("get", "pods"),
        ("patch", "pods/status"),
        ("create", "events"),
        ("list", "configmaps"),
        ("get", "secrets"),
        ("create", "serviceaccounts/token"),
    ] {
        assert!(!may_as("netpath-agent", verb, what), "{verb} {what}");
    }
    let who = "--as=system:serviceaccount:netpath:netpath-agent";
    let in_own = |words: &[&str]| {
        let words = [&["--namespace", "netpath", "auth", "can-i"][..], words, &[who]].concat();
        kube.try_kubectl(&words, "").is_ok()
    };
    assert!(in_own(&["create", "serviceaccounts/netpath", "--subresource=token"]));
    assert!(!in_own(&["create", "serviceaccounts/netpath-agent", "--subresource=token"]));
    assert!(in_own(&["watch", "configmaps/masters"]) && !in_own(&["watch", "configmaps/others"]));
}

#[test]
fn a_hundred_pods_come_and_go() {
    const PODS: usize = 100;
    let kube = Kube::new();
    let crowd = Namespace::new(&kube, "crowd");
    let mut conf = private();
    conf["ipam"] = json!({"type": "host-local", "subnet": "10.99.0.0/16"});
    crowd.nad("wide", &conf);
    crowd.apply(
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "crowd"},
            "spec": {"replicas": PODS, "selector": {"matchLabels": {"app": "crowd"}}, "template": {
                "metadata": {"labels": {"app": "crowd"}, "annotations": {kube::NETWORKS: "wide"}},
                "spec": {"terminationGracePeriodSeconds": 0,
                         "containers": [{"name": "main", "image": site::IMAGE, "imagePullPolicy": "Never"}]}}}})
        .to_string(),
    );
    crowd.kubectl(&["rollout", "status", "deployment/crowd", "--timeout=180s"], "");
    let pods: Value = serde_json::from_str(&crowd.kubectl(&["get", "pods", "--output", "json"], "")).unwrap();
    let mut macs = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for pod in pods["items"].as_array().unwrap() {
        let status: Value = serde_json::from_str(
            pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap(),
        )
        .unwrap();
        macs.insert(status[1]["mac"].as_str().unwrap().to_owned());
        addresses.insert((pod["spec"]["nodeName"].to_string(), status[1]["ips"][0].to_string()));
    }
    assert_eq!((macs.len(), addresses.len()), (PODS, PODS), "each has its own");
    let nodes = ["worker01", "worker02"].map(|name| kube.node(name));
    assert_eq!(nodes.iter().map(|node| crowd.rows(node)).sum::<usize>(), PODS);
    crowd.kubectl(&["delete", "deployment", "crowd"], "");
    eventually(PATIENCE, "no row and no address is left", || {
        let addresses = |node: &site::Machine| node.sh("ls /var/lib/cni/networks/wide | grep '^10' || :");
        nodes.iter().all(|node| crowd.rows(node) == 0 && addresses(node).is_empty()).then_some(())
    });
}

#[test]
fn every_node_has_the_image_and_it_runs() {
    let kube = Kube::new();
    let image = std::env::var("NETPATH_IMAGE").expect("start these tests by `cargo xtask test cluster`");
    let shipped = Namespace::new(&kube, "shipped");
    let pods = ["worker01", "worker02"];
    for node in pods {
        shipped.apply(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node},
                "spec": {"nodeName": node, "restartPolicy": "Never", "containers": [{"name": "main", "image": image,
                         "imagePullPolicy": "IfNotPresent", "args": ["--version"],
                         "securityContext": {"readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}}]}})
            .to_string(),
        );
    }
    for node in pods {
        eventually(PATIENCE, "it has run", || {
            let pod = shipped.try_get("pod", node)?;
            (pod["status"]["phase"] == "Succeeded").then_some(())
        });
        assert_eq!(
            shipped.kubectl(&["logs", node], ""),
            concat!("netpath ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }
}
