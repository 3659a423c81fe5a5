//! The meta-plugin before plugins that write down how they are called: order, environment, stdin, what is undone.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::fs;

use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

fn list(plugins: &[&str]) -> Value {
    let plugins: Vec<Value> = plugins.iter().map(|kind| json!({"type": kind})).collect();
    json!({"cniVersion": "1.0.0", "plugins": plugins})
}

#[test]
fn networks_are_attached_in_order_and_ended_in_reverse() {
    let meta = MetaSite::new();
    meta.nad("a", list(&["one", "two"]));
    meta.nad_in("infra", "b", json!({"cniVersion": "0.4.0", "name": "own", "type": "three"}));
    let conf = meta.conf("a, infra/b@lan0", json!({}));
    let result = meta.call("ADD", &conf).ok();
    assert_eq!(result["interfaces"][0]["name"], "eth0", "the runtime is given the first network's result");

    let calls = meta.calls();
    let texts: Vec<String> = calls.iter().map(meta::Recorded::text).collect();
    assert_eq!(texts, ["ADD first eth0", "ADD one net1", "ADD two net1", "ADD three lan0"]);
    let names: Vec<_> = calls.iter().map(|it| (&it.stdin["name"], &it.stdin["cniVersion"])).collect();
    let (v1, v04) = (json!("1.0.0"), json!("0.4.0"));
    assert_eq!(names, [(&json!("cbr0"), &v1), (&json!("a"), &v1), (&json!("a"), &v1), (&json!("own"), &v04)]);
    assert!(calls[1].stdin.get("prevResult").is_none() && calls[3].stdin.get("prevResult").is_none());
    assert_eq!(calls[2].stdin["prevResult"]["interfaces"][0]["mac"], "02:00:00:00:00:01");
    let args = "IgnoreUnknown=true;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";
    for call in &calls {
        assert_eq!(
            (call.var("CNI_ARGS"), call.var("NETPATH_DEPTH"), call.var("CNI_CONTAINERID")),
            (args, "1", "c1")
        );
    }

    let status = meta.status();
    let names: Vec<_> = status.as_array().unwrap().iter().map(|it| (&it["name"], &it["interface"])).collect();
    assert_eq!(
        names,
        [
            (&json!("cbr0"), &json!("eth0")),
            (&json!("web/a"), &json!("net1")),
            (&json!("infra/b"), &json!("lan0"))
        ]
    );
    assert_eq!((&status[0]["default"], &status[1]["ips"]), (&json!(true), &json!(["10.8.0.2"])));
    let events = meta.outcome()["events"].clone();
    assert_eq!(
        events[1],
        json!({"type": "Normal", "reason": "AddedInterface",
        "message": "Add net1 [10.8.0.2/24] from web/a"})
    );

    meta.said();
    meta.call("DEL", &conf).ok();
    let calls = meta.calls();
    assert_eq!(meta.said(), ["DEL three lan0", "DEL two net1", "DEL one net1", "DEL first eth0"]);
    assert_eq!(
        calls[1].stdin["prevResult"]["interfaces"][0]["mac"], "02:00:00:00:00:02",
        "the last plugin's result"
    );
    assert_eq!(calls[2].stdin["prevResult"], calls[1].stdin["prevResult"]);
    assert_eq!(meta.remembered(), NOTHING);
}

#[test]
fn what_is_executed_for_del_is_what_was_executed_for_add() {
    let meta = MetaSite::new();
    meta.nad("a", json!({"cniVersion": "1.0.0", "type": "one", "own": {"kept": [1]}}));
    let asks =
        r#"[{"name": "a", "cni-args": {"x": 1}, "portMappings": [{"hostPort": 1, "containerPort": 2}]}]"#;
    meta.nad("b", json!({"cniVersion": "1.0.0", "type": "two"}));
    let conf = meta.conf(asks, json!({}));
    meta.call("ADD", &conf).ok();
    // The definition is gone, the annotation is another's, and the pod's namespace too.
    fs::remove_file(meta.site.root.join("nads/web-a.json")).unwrap();
    meta.said();
    meta.call("DEL", &meta.conf("b", json!({}))).env("CNI_NETNS", "").ok();
    let calls = meta.calls();
    assert_eq!(meta.said(), ["DEL one net1", "DEL first eth0"]);
    assert_eq!(
        (&calls[0].stdin["own"], &calls[0].stdin["args"]),
        (&json!({"kept": [1]}), &json!({"cni": {"x": 1}}))
    );
    // A sandbox is ended more than once; by then it is the cluster network's alone.
    meta.call("DEL", &conf).env("CNI_NETNS", "").ok();
    assert_eq!(meta.said(), ["DEL first eth0"]);
}

#[test]
fn plugins_are_told_what_they_declare() {
    let meta = MetaSite::new();
    let all = json!({"ips": true, "mac": true, "portMappings": true, "bandwidth": true, "dns": true});
    meta.cluster(
        json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "first", "capabilities": all}]}),
    );
    meta.nad(
        "a",
        json!({"cniVersion": "1.0.0", "plugins": [{"type": "one", "capabilities": {"ips": true}},
        {"type": "two", "capabilities": {"portMappings": true, "mac": false}}]}),
    );
    let asks = r#"[{"name": "a", "ips": ["10.1.0.5/24"], "mac": "02:00:00:00:00:77"}]"#;
    let mut conf = meta.conf(asks, json!({}));
    conf["runtimeConfig"]["portMappings"] = json!([{"hostPort": 80, "containerPort": 8080}]);
    conf["runtimeConfig"]["dns"] = json!({"servers": ["10.96.0.10"]});
    meta.call("ADD", &conf).ok();
    let calls = meta.calls();
    assert_eq!(
        calls[0].stdin["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 80, "containerPort": 8080}],
        "dns": {"servers": ["10.96.0.10"]}})
    );
    assert_eq!(calls[1].stdin["runtimeConfig"], json!({"ips": ["10.1.0.5/24"]}));
    assert!(calls[2].stdin.get("runtimeConfig").is_none(), "what the runtime passes is the first network's");
    assert!(calls[1].var("CNI_ARGS").ends_with(";MAC=02:00:00:00:00:77;IP=10.1.0.5/24"));
    let event = &meta.outcome()["events"][0];
    assert_eq!(event["reason"], "CapabilityNotDeclared", "{event}");

    meta.call("DEL", &conf).ok();
    conf["strictCapabilities"] = json!(true);
    meta.said();
    let said = meta.call("ADD", &conf).fails(7, "asks network `web/a` for `mac`");
    assert!(said.contains("add it to `capabilities`"), "{said}");
    assert_eq!(meta.said(), NOTHING);
}

#[test]
fn when_one_fails_all_are_ended_the_failed_one_first() {
    let meta = MetaSite::new();
    for (name, plugins) in [("a", &["one"]), ("b", &["two"]), ("c", &["three"])] {
        meta.nad(name, list(plugins));
    }
    meta.answer("two", "ADD.fail", r#"{"code": 113, "msg": "no devices left", "details": "all 4 in use"}"#);
    let conf = meta.conf("a,b,c", json!({}));
    let said = meta.call("ADD", &conf).fails(113, "no devices left");
    assert!(said.starts_with("[web/p/u1:web/b]: error adding container to network \"web/b\""), "{said}");
    assert!(said.contains("all 4 in use"), "{said}");
    let previous = |at: usize| meta.calls()[at].stdin["prevResult"]["interfaces"][0]["mac"].clone();
    // Some plugins (`firewall`) end nothing without it.
    assert_eq!(
        (previous(3), previous(4), previous(5)),
        (json!(null), json!("02:00:00:00:00:01"), json!("02:00:00:00:00:00")),
        "each is ended with the result that it had"
    );
    assert_eq!(
        meta.said(),
        ["ADD first eth0", "ADD one net1", "ADD two net2", "DEL two net2", "DEL one net1", "DEL first eth0"]
    );
    let kept: Vec<_> = meta.remembered().into_iter().filter(|path| !path.starts_with("run/")).collect();
    assert_eq!(kept, NOTHING);

    // What cannot be ended is left for DEL to find.
    meta.answer("one", "DEL.fail", r#"{"code": 11, "msg": "busy"}"#);
    meta.call("ADD", &conf).fails(113, "could not all be undone");
    meta.said();
    meta.call("DEL", &conf).fails(11, "busy");
    assert_eq!(meta.said().len(), 4, "every one is tried");
    meta.no_answer("one", "DEL.fail");
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.remembered(), NOTHING);
}

#[test]
fn a_plugin_that_is_gone_keeps_no_pod_from_ending() {
    let meta = MetaSite::new();
    meta.nad("a", list(&["one"]));
    let conf = meta.conf("a", json!({}));
    meta.call("ADD", &conf).ok();
    fs::remove_file(meta.site.root.join("fake/bin/one")).unwrap();
    meta.said();
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.said(), ["DEL first eth0"]);
    let pending = meta.site.root.state().join("pending/c1.json");
    assert!(pending.exists(), "it is left for the sweep");
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_is_done() {
    let meta = MetaSite::new();
    meta.nad("a", list(&["one"]));
    meta.nad("torn", json!({"plugins": []}));
    meta.nad("inner", json!({"type": "netpath", "clusterNetwork": "x"}));
    meta.nad("multus", json!({"type": "multus"}));
    meta.nad("out", json!({"type": "../one"}));
    meta.nad("cron", json!({"type": "one", "ipam": {"type": "host-local", "dataDir": "/etc/cron.d"}}));
    meta.nad_in("infra", "b", list(&["two"]));
    let isolated = json!({"namespaceIsolation": true});
    for (annotation, keys, code, expected) in [
        ("none", json!({}), 7, "cannot find a network-attachment-definition (none) in namespace (web)"),
        ("a@x,a@x", json!({}), 7, "interface `x` is asked for by `web/a` and by `web/a`"),
        ("a@eth0", json!({}), 7, "interface `eth0` is asked for by `cbr0` and by `web/a`"),
        ("A", json!({}), 7, "networks `A`: namespace, name and interface have lower-case letters"),
        ("[{", json!({}), 6, "annotation k8s.v1.cni.cncf.io/networks `[{` is not valid JSON"),
        ("torn", json!({}), 7, "type is missing"),
        ("inner", json!({}), 7, "executes `netpath`, a meta-plugin"),
        ("multus", json!({}), 7, "executes `multus`, a meta-plugin"),
        ("out", json!({}), 7, "without a directory"),
        ("infra/b", isolated.clone(), 105, "pod is in namespace web but refers to target namespace infra"),
        ("a", json!({"allowedTypes": ["macvlan"]}), 7, "type `one`: `allowedTypes`"),
        ("cron", json!({}), 7, "ipam.dataDir `/etc/cron.d`: it must lie in /var/lib/cni"),
        (
            r#"[{"name": "a", "default-route": ["10.0.0.1", "10.0.0.2"]}]"#,
            json!({}),
            7,
            "one default route of each",
        ),
        ("a", json!({"networks": ""}), 7, "there is no source of networks: set `kubeconfig`"),
    ] {
        meta.call("ADD", &meta.conf(annotation, keys)).fails(code, expected);
        assert_eq!(meta.said(), NOTHING, "{annotation}");
    }
    let kept: Vec<_> = meta.remembered().into_iter().filter(|path| !path.starts_with("run/")).collect();
    assert_eq!(kept, NOTHING);
    let reasons: Vec<_> =
        meta.outcome()["events"].as_array().unwrap().iter().map(|it| it["reason"].clone()).collect();
    assert_eq!(reasons, ["NoNetworkFound"]);
    // The specification's way, where the administrator wants it.
    meta.call("ADD", &meta.conf("[{", json!({"ignoreInvalidAnnotation": true}))).ok();
    assert_eq!(meta.said(), ["ADD first eth0"]);
    meta.call("ADD", &meta.conf("a", isolated)).id("c2").ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1"]);
}

#[test]
fn names_that_make_no_file_name_are_refused_and_a_result_that_cannot_be_read_stops_no_del() {
    let meta = MetaSite::new();
    let id = "c".repeat(64);
    let conf = meta.conf("a", json!({}));
    let named = |length: usize| json!({"cniVersion": "1.0.0", "name": "n".repeat(length), "type": "one"});
    meta.nad("a", named(187));
    meta.call("ADD", &conf).id(&id).fails(7, "it has more than 255 bytes");
    assert_eq!(meta.said(), NOTHING);
    meta.nad("a", named(185));
    meta.call("ADD", &conf).id(&id).ok();
    let results = meta.site.root.join("var/lib/cni/multus/results");
    for entry in fs::read_dir(results).unwrap() {
        let path = entry.unwrap().path();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    meta.said();
    meta.call("DEL", &conf).id(&id).ok();
    assert_eq!(meta.said(), ["DEL one net1", "DEL first eth0"]);
}

#[test]
fn a_plugin_that_cannot_be_executed_or_a_key_of_another_type_stops_no_del() {
    let meta = MetaSite::new();
    meta.nad("a", list(&["one"]));
    let conf = meta.conf("a", json!({}));
    let plugin = meta.site.root.join("fake/bin/one");
    let good = fs::read_to_string(&plugin).unwrap();
    let write = |text: &str| fs::write(&plugin, text).unwrap();
    for (text, set_aside) in [("#!/nonexistent/sh\n", true), ("no program", true), (good.as_str(), false)] {
        write(&good);
        meta.call("ADD", &conf).ok();
        meta.said();
        write(text);
        let keys = json!({"defaultNetworks": 5, "namespaceIsolation": "yes", "clusterNetwork": ["x"]});
        meta.call("DEL", &meta.conf("", keys)).ok();
        assert_eq!(meta.said().last().map(String::as_str), Some("DEL first eth0"));
        let pending = meta.site.root.state().join("pending/c1.json");
        assert_eq!(pending.exists(), set_aside, "{text}");
        if set_aside {
            fs::remove_file(pending).unwrap();
        }
    }
}

/// A pipe that nobody writes to would be waited for until the runtime gives up.
#[test]
fn what_is_no_ordinary_file_is_named_and_not_waited_for() {
    let meta = MetaSite::new();
    meta.nad("a", list(&["one"]));
    let conf = meta.conf("a", json!({}));
    let named = "it is a named pipe, and must be an ordinary file";
    for file in ["nads/web-b.json", "etc/cni/netpath/masters.json", "etc/cni/net.d/10-first.conflist"] {
        let path = match file {
            "etc/cni/netpath/masters.json" => meta.site.root.masters(),
            file => meta.site.root.join(file),
        };
        let there = fs::read(&path).ok();
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        meta.nad("m", json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "eno1"}));
        let wanted = if file.starts_with("etc/cni/netpath") { "m" } else { "zz" };
        meta.call("ADD", &meta.conf(wanted, json!({}))).fails(5, named);
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = there {
            fs::write(&path, bytes).unwrap();
        }
    }
    // A record is one that is torn, and hides no other.
    meta.call("ADD", &conf).ok();
    for path in ["c9-net1.json", "sandboxes/c9.json"] {
        nix::unistd::mkfifo(&meta.site.root.state().join(path), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let listing = netpath::state::Records::new(&meta.site.root).all().unwrap();
    assert_eq!(listing.torn.len(), 1);
    meta.call("DEL", &conf).id("c9").ok();
    meta.call("DEL", &conf).ok();
    assert!(meta.remembered().iter().all(|path| !path.contains("c1")), "{:?}", meta.remembered());
}

/// Both at once are the deepest that there can be, and are found again by DEL.
#[test]
fn what_is_too_deep_to_be_written_down_is_refused() {
    let meta = MetaSite::new();
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let asked = |depth: usize| format!(r#"[{{"name": "deep", "cni-args": {{"x": {}}}}}]"#, nested(depth));
    let nad = |depth: usize| {
        meta.nad_text(
            "deep",
            &format!(r#"{{"plugins": [{{"cniVersion": "1.0.0", "type": "one", "x": {}}}]}}"#, nested(depth)),
        );
    };
    nad(61);
    let refused = "[0].cni-args is nested deeper than 64 levels";
    meta.call("ADD", &meta.conf(&asked(62), json!({}))).fails(7, refused);
    meta.call("ADD", &meta.conf(&asked(61), json!({}))).ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1"]);
    meta.call("DEL", &meta.conf("", json!({}))).ok();
    assert_eq!(meta.said(), ["DEL one net1", "DEL first eth0"]);
    assert!(meta.remembered().iter().all(|path| path.starts_with("run/")), "{:?}", meta.remembered());
    nad(62);
    meta.call("ADD", &meta.conf("deep", json!({}))).fails(7, "plugins is nested deeper than 64 levels");
    assert_eq!(meta.said(), NOTHING);
}

#[test]
fn a_pod_that_asks_for_nothing_starts_with_everything_of_ours_broken() {
    let meta = MetaSite::new();
    // Neither networks, nor data path, nor a place for records and caches.
    fs::remove_dir_all(meta.site.root.join("nads")).unwrap();
    meta.site.masters("{");
    meta.site.write(&meta.site.root.join("var/lib/netpath"), "in the way");
    meta.site.write(&meta.site.root.join("var/lib/cni"), "in the way");
    let conf = meta.conf("", json!({}));
    let result = meta.call("ADD", &conf).ok();
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(meta.said(), ["ADD first eth0"]);
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.said(), ["DEL first eth0"]);
    // With something asked for it does not start bare.
    meta.call("ADD", &meta.conf("a", json!({}))).id("c2").fails(5, "cannot list the networks");
    assert_eq!(meta.said(), NOTHING);
}

#[test]
fn annotations_come_from_a_manifest_where_the_runtime_passes_none() {
    let meta = MetaSite::new();
    meta.nad("a", list(&["one"]));
    let mut conf = meta.conf("", json!({}));
    conf.as_object_mut().unwrap().remove("runtimeConfig");
    let pod = |uid: &str| {
        json!({"kind": "Pod", "metadata": {"namespace": "web", "name": "p", "uid": uid,
            "annotations": {"k8s.v1.cni.cncf.io/networks": "a"}}})
    };
    let file = meta.site.root.join("nads/pod.json");
    meta.site.write(&file, &pod("u2").to_string());
    meta.call("ADD", &conf).fails(141, "it was replaced meanwhile");
    meta.site.write(&file, &pod("u1").to_string());
    meta.call("ADD", &conf).ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1"]);
    // Where nobody can say what a pod wants, that is not nothing.
    conf["networks"] = json!("");
    conf["kubeconfig"] = json!("/etc/kubeconfig");
    meta.call("ADD", &conf).id("c2").fails(5, "cannot read the kubeconfig");
}

#[test]
fn runtimes_without_kubernetes_ask_by_a_file_or_by_arguments() {
    let meta = MetaSite::new();
    meta.nad_in("default", "a", list(&["one"]));
    meta.nad("b", list(&["two"]));
    let mut conf = meta.conf("", json!({}));
    conf.as_object_mut().unwrap().remove("runtimeConfig");
    meta.site.write(&meta.site.root.join("nads/containers/shop"), "a@lan0, web/b\n");
    // As podman calls.
    let podman = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=shop;K8S_POD_INFRA_CONTAINER_ID=c1";
    meta.call("ADD", &conf).args(podman).ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one lan0", "ADD two net2"]);
    meta.call("DEL", &conf).args(podman).ok();
    assert_eq!(meta.said(), ["DEL two net2", "DEL one lan0", "DEL first eth0"]);
    // As nerdctl calls: by the container's id.
    meta.site.write(&meta.site.root.join("nads/containers/c7"), "a");
    meta.call("ADD", &conf).id("c7").args("IgnoreUnknown=1").ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1"]);
    meta.call("ADD", &conf).id("c8").args("IgnoreUnknown=1;NETWORKS=a,web/b").ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1", "ADD two net2"]);
    // In a cluster CNI_ARGS ask for nothing.
    let conf = meta.conf("", json!({}));
    meta.call("ADD", &conf).id("c9").args("IgnoreUnknown=1;NETWORKS=a").ok();
    assert_eq!(meta.said(), ["ADD first eth0"]);
}

#[test]
fn the_first_network_can_be_another_and_every_pod_can_have_more() {
    let meta = MetaSite::new();
    meta.nad_in("kube-system", "other", list(&["two"]));
    meta.nad("a", list(&["one"]));
    meta.site.write(
        &meta.site.root.join("etc/cni/multus/net.d/70-more.conf"),
        &json!({"cniVersion": "1.0.0", "name": "more", "type": "three"}).to_string(),
    );
    let mut conf = meta.conf("a", json!({"defaultNetworks": ["more"]}));
    conf["runtimeConfig"]["io.kubernetes.cri.pod-annotations"]["v1.multus-cni.io/default-network"] =
        json!("other");
    meta.call("ADD", &conf).ok();
    assert_eq!(meta.said(), ["ADD two eth0", "ADD three net1", "ADD one net2"]);
    let system = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=p";
    meta.call("ADD", &meta.conf("", json!({"defaultNetworks": ["more"]}))).id("c2").args(system).ok();
    assert_eq!(meta.said(), ["ADD first eth0"]);
    let delegates =
        json!([{"cniVersion": "1.0.0", "name": "x", "type": "one"}, {"name": "y", "type": "two"}]);
    let mut conf = meta.conf("a", json!({"delegates": delegates}));
    conf.as_object_mut().unwrap().remove("clusterNetwork");
    meta.call("ADD", &conf).id("c3").ok();
    assert_eq!(meta.said(), ["ADD one eth0", "ADD two net1", "ADD one net2"]);
}

#[test]
fn what_multus_made_is_ended_by_its_cache() {
    let meta = MetaSite::new();
    let conf = |kind: &str| json!({"cniVersion": "1.0.0", "name": format!("n-{kind}"), "type": kind, "deep": {"a": [1]}});
    let bytes = |kind: &str| netpath::spec::base64::encode(conf(kind).to_string().as_bytes());
    let empty = json!({"dns": {}, "ipam": {}});
    let cache = json!([
        {"Conf": {"cniVersion": "1.0.0", "name": "n-two", "type": "two", "ipam": {}, "dns": {}}, "ConfList": {"plugins": null},
         "Name": "n-two", "IsFilterV4Gateway": false, "IsFilterV6Gateway": false, "Bytes": bytes("two")},
        {"Conf": empty, "ConfList": {"plugins": null}, "Name": "web/a", "ifnameRequest": "lan0",
         "macRequest": "02:00:00:00:00:01", "ipRequest": ["10.0.0.5/24"], "IsFilterV4Gateway": false,
         "IsFilterV6Gateway": false, "Bytes": bytes("one")},
    ]);
    let dir = meta.site.root.multus_cache();
    meta.site.write(&dir.join("c1"), &cache.to_string());
    let result = json!({"kind": "cniCacheV1", "containerId": "c1", "config": bytes("one"), "ifName": "lan0",
        "networkName": "n-one", "capabilityArgs": {"mac": "02:00:00:00:00:01"}, "result": {"cniVersion": "1.0.0", "x": 1}});
    meta.site.write(&dir.join("results/n-one-c1-lan0"), &result.to_string());
    meta.call("DEL", &meta.conf("", json!({}))).ok();
    let calls = meta.calls();
    assert_eq!(meta.said(), ["DEL one lan0", "DEL two eth0"]);
    assert_eq!(
        (&calls[0].stdin["deep"], &calls[0].stdin["prevResult"]["x"]),
        (&json!({"a": [1]}), &json!(1))
    );
    assert!(calls[0].var("CNI_ARGS").ends_with(";MAC=02:00:00:00:00:01;IP=10.0.0.5/24"));
    assert_eq!(meta.remembered(), NOTHING);
}

#[test]
fn without_a_record_it_is_the_cluster_networks_own_del() {
    let meta = MetaSite::new();
    let result = json!({"kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0",
        "networkName": "cbr0", "result": {"cniVersion": "1.0.0", "made": "before netpath"}});
    meta.site.write(&meta.site.root.join("var/lib/cni/results/cbr0-c1-eth0"), &result.to_string());
    let conf = meta.conf("", json!({}));
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.calls()[0].stdin["prevResult"]["made"], "before netpath");
    meta.answer("first", "DEL.fail", r#"{"code": 11, "msg": "etcd is away"}"#);
    meta.call("DEL", &conf).fails(11, "etcd is away");
    // A torn record counts as none.
    meta.no_answer("first", "DEL.fail");
    meta.said();
    meta.site.write(&meta.site.root.state().join("sandboxes/c1.json"), "{");
    meta.site.write(&meta.site.root.multus_cache().join("c1"), "");
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.said(), ["DEL first eth0"]);
}

#[test]
fn meta_plugins_do_not_execute_each_other_for_ever() {
    let meta = MetaSite::new();
    let conf = meta.conf("", json!({}));
    meta.call("ADD", &conf).env("NETPATH_DEPTH", "2").fails(7, "execute each other (2 calls deep)");
    meta.call("DEL", &conf).env("NETPATH_DEPTH", "2").ok();
    assert_eq!(meta.said(), NOTHING);
    for kind in ["netpath", "multus", "multus-shim"] {
        meta.cluster(json!({"cniVersion": "1.0.0", "name": "loop", "plugins": [{"type": kind}]}));
        meta.call("ADD", &conf).fails(7, &format!("network `loop` executes `{kind}`"));
    }
    // Where Multus executes us, its cache of the sandbox stays its own.
    meta.cluster(json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "first"}]}));
    let bytes = netpath::spec::base64::encode(conf.to_string().as_bytes());
    let file = meta.site.root.multus_cache().join("c1");
    let cache = json!([{"Name": "cluster", "Bytes": bytes}]).to_string();
    meta.site.write(&file, &cache);
    meta.call("ADD", &conf).ok();
    meta.call("DEL", &conf).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), cache);
    assert_eq!(meta.said(), ["ADD first eth0", "DEL first eth0"]);
    meta.answer("first", "ADD.fail", r#"{"code": 11, "msg": "not yet"}"#);
    meta.call("ADD", &conf).fails(11, "not yet");
    assert_eq!(fs::read_to_string(&file).unwrap(), cache, "after an ADD that failed too");
}
