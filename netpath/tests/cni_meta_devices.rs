//! Devices that the kubelet gave to a pod: which network has which, what its plugins are told, what is published.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/kubelet.rs"]
mod kubelet;
#[path = "common/meta.rs"]
mod meta;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use kubelet::{Kubelet, Manner, Pods};
use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

const SRIOV: &str = "intel.com/sriov";
const GET: &str = "/v1.PodResourcesLister/Get";
const LIST: &str = "/v1.PodResourcesLister/List";

/// What pod `web/p` has, in no order, beside another pod.
fn pods() -> Pods {
    vec![
        ("web", "q", vec![(SRIOV, vec!["0000:03:02.0"])]),
        ("web", "p", vec![(SRIOV, vec!["0000:03:02.7", "0000:03:02.1"]), ("nvidia.com/net", vec!["n1"])]),
    ]
}

/// A network in namespace `web` that wants devices of a resource.
fn nad(meta: &MetaSite, name: &str, resource: &str, config: &Value) {
    let nad = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": name, "namespace": "web",
        "annotations": {"k8s.v1.cni.cncf.io/resourceName": resource}}, "spec": {"config": config.to_string()}});
    meta.site.write(&meta.site.root.join("nads").join(format!("web-{name}.json")), &nad.to_string());
}

fn site() -> MetaSite {
    let meta = MetaSite::new();
    let told = json!({"deviceID": true, "CNIDeviceInfoFile": true});
    let list =
        json!({"cniVersion": "1.0.0", "plugins": [{"type": "one", "capabilities": told}, {"type": "two"}]});
    nad(&meta, "a", SRIOV, &list);
    nad(&meta, "b", "nvidia.com/net", &json!({"cniVersion": "1.0.0", "type": "three", "capabilities": told}));
    meta
}

/// The device of each call after the first network's, in the configuration's two keys.
fn devices(meta: &MetaSite) -> Vec<(String, Value, Value)> {
    let calls = meta.calls();
    calls[1..]
        .iter()
        .map(|it| (it.text(), it.stdin["deviceID"].clone(), it.stdin["pciBusID"].clone()))
        .collect()
}

#[test]
fn devices_are_handed_out_in_order_by_resource() {
    for (manner, calls) in
        [(Manner::Current, vec![GET]), (Manner::Old, vec![GET, LIST]), (Manner::SwitchedOff, vec![GET, LIST])]
    {
        let meta = site();
        let kubelet = Kubelet::new(meta.site.root.path(), manner, pods());
        // What the kubelet gave wins over what the pod asks for.
        let asks = r#"[{"name": "a", "deviceID": "0000:99:00.0"}, {"name": "b"}, {"name": "a"}]"#;
        let conf = meta.conf(asks, json!({}));
        meta.call("ADD", &conf).ok();
        assert_eq!(kubelet.calls(), calls, "one pod is asked for once, whatever it has");
        let expected = [
            ("ADD one net1", "0000:03:02.1"),
            ("ADD two net1", "0000:03:02.1"),
            ("ADD three net2", "n1"),
            ("ADD one net3", "0000:03:02.7"),
            ("ADD two net3", "0000:03:02.7"),
        ];
        assert_eq!(devices(&meta), expected.map(|(call, id)| (call.to_owned(), json!(id), json!(id))));
        let told = meta.calls()[4].stdin["runtimeConfig"].clone();
        let file = meta.site.root.join("var/run/k8s.cni.cncf.io/devinfo/cni/web-a-c1_net3");
        assert_eq!(told, json!({"deviceID": "0000:03:02.7", "CNIDeviceInfoFile": file}));
        assert!(meta.calls()[5].stdin.get("runtimeConfig").is_none());
        // Where Multus would find it.
        let cached: Value =
            serde_json::from_slice(&fs::read(meta.site.root.multus_cache().join("c1")).unwrap()).unwrap();
        assert_eq!(
            (&cached[3]["deviceID"], &cached[3]["resourceName"]),
            (&json!("0000:03:02.7"), &json!(SRIOV))
        );

        // DEL has the devices of ADD, whatever the kubelet says now, and does not ask it.
        drop(kubelet);
        meta.said();
        meta.call("DEL", &conf).ok();
        let calls = meta.calls();
        assert_eq!(
            (calls[0].text().as_str(), &calls[0].stdin["deviceID"]),
            ("DEL two net3", &json!("0000:03:02.7"))
        );
        assert_eq!(meta.remembered(), NOTHING);
    }
}

#[test]
fn a_device_that_the_pod_does_not_have_is_named_with_what_it_has() {
    let meta = site();
    nad(&meta, "c", "intel.com/other", &json!({"cniVersion": "1.0.0", "type": "one"}));
    let _kubelet = Kubelet::new(meta.site.root.path(), Manner::Current, pods());
    for (annotation, network) in [("c", "web/c"), ("b,b", "web/b")] {
        let said =
            meta.call("ADD", &meta.conf(annotation, json!({}))).fails(7, &format!("network `{network}`"));
        for part in [
            "pod web/p/u1",
            "intel.com/sriov (0000:03:02.1, 0000:03:02.7) and nvidia.com/net (n1)",
            "add one to the `resources` of a container",
        ] {
            assert!(said.contains(part), "`{part}` is not in {said}");
        }
    }
    assert_eq!(meta.said(), NOTHING);
    // The annotation is the second best.
    meta.call("ADD", &meta.conf(r#"[{"name": "c", "deviceID": "x"}]"#, json!({}))).ok();
    assert_eq!(devices(&meta)[0].1, "x");
}

#[test]
fn without_a_kubelet_the_annotation_names_the_device() {
    let meta = site();
    let said = meta.call("ADD", &meta.conf("a", json!({}))).fails(7, "wants a device of `intel.com/sriov`");
    assert!(said.contains("there is no kubelet to ask"), "{said}");
    meta.call("ADD", &meta.conf(r#"[{"name": "a", "deviceID": "x"}]"#, json!({}))).ok();
    assert_eq!(devices(&meta)[0].1, "x");
}

#[test]
fn a_kubelet_that_does_not_answer_is_no_word() {
    let meta = site();
    let asks = r#"[{"name": "a", "deviceID": "x"}]"#;
    let refuses = Kubelet::new(meta.site.root.path(), Manner::Refuses, pods());
    let said = meta
        .call("ADD", &meta.conf(asks, json!({})))
        .fails(11, "the kubelet does not say which devices pod web/p has");
    assert!(said.contains("not for you"), "{said}");
    drop(refuses);
    let _hangs = Kubelet::new(meta.site.root.path(), Manner::Hangs, pods());
    let start = Instant::now();
    meta.call("ADD", &meta.conf(asks, json!({}))).fails(11, "did not say within 10s");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // A pod that has no such network does not need it.
    meta.call("ADD", &meta.conf("", json!({}))).ok();
    assert_eq!(meta.said(), ["ADD first eth0"]);
}

/// What the device plugin wrote of a device.
fn describe(meta: &MetaSite, device: &str, text: &str) {
    let file = format!("var/run/k8s.cni.cncf.io/devinfo/dp/intel.com-sriov-{device}-device.json");
    meta.site.write(&meta.site.root.join(&file), text);
}

/// The files of attachments.
fn described(meta: &MetaSite) -> Vec<String> {
    let files = meta.site.files().into_keys().map(|path| path.to_str().unwrap().to_owned());
    files.filter(|path| path.starts_with("var/run/k8s.cni.cncf.io/devinfo/cni/")).collect()
}

const INFO: &str =
    r#"{"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:03:02.1", "unknown": 1}}"#;

#[test]
fn what_is_known_of_a_device_is_passed_on_and_published() {
    let meta = site();
    let _kubelet = Kubelet::new(meta.site.root.path(), Manner::Current, pods());
    describe(&meta, "0000:03:02.1", INFO);
    // A plugin that knows it better.
    let plugin = meta.site.root.join("fake/bin/two");
    let script = "#!/bin/sh\nf=$(dirname $0)/../../var/run/k8s.cni.cncf.io/devinfo/cni/web-a-c1_$CNI_IFNAME\n\
        [ $CNI_COMMAND = ADD ] || exit 0\ncp $f $f.seen\n\
        sed -i 's/\"pci-address\"/\"rdma-device\":\"mlx5_3\",\"pci-address\"/' $f\n\
        echo '{\"cniVersion\": \"1.0.0\", \"interfaces\": [{\"name\": \"'$CNI_IFNAME'\", \"sandbox\": \"x\"}]}'\n";
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let conf = meta.conf("a", json!({}));
    meta.call("ADD", &conf).ok();
    let file = meta.site.root.join("var/run/k8s.cni.cncf.io/devinfo/cni/web-a-c1_net1");
    let seen = file.with_extension("seen");
    assert_eq!(
        fs::read_to_string(&seen).unwrap(),
        r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:03:02.1"}}"#
    );
    fs::remove_file(seen).unwrap();
    let text =
        meta.outcome()["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap().to_owned();
    let expected = concat!(
        "{\n    \"name\": \"web/a\",\n    \"interface\": \"net1\",\n    \"dns\": {},\n    \"device-info\": {\n",
        "        \"type\": \"pci\",\n        \"version\": \"1.1.0\",\n        \"pci\": {\n",
        "            \"pci-address\": \"0000:03:02.1\",\n            \"rdma-device\": \"mlx5_3\"\n        }\n    }\n}]"
    );
    assert!(text.ends_with(expected), "{text}");
    meta.call("DEL", &conf).ok();
    assert_eq!(described(&meta), NOTHING);
}

#[test]
fn a_description_that_cannot_be_read_keeps_no_pod_from_starting() {
    for (what, text) in [("torn", "{"), ("empty", ""), ("another form", r#"{"pci": "0000:03:02.1"}"#)] {
        let meta = site();
        let _kubelet = Kubelet::new(meta.site.root.path(), Manner::Current, pods());
        describe(&meta, "0000:03:02.1", text);
        meta.call("ADD", &meta.conf("a", json!({}))).ok();
        let events = meta.outcome()["events"].clone();
        assert_eq!(events[0]["reason"], "DeviceInfoUnusable", "{what}: {events}");
        assert!(events[0]["message"].as_str().unwrap().starts_with("network web/a: "), "{events}");
        assert!(meta.status()[1].get("device-info").is_none(), "{what}");
    }
}

#[test]
fn no_description_stays_of_an_attachment_that_failed() {
    let meta = site();
    let _kubelet = Kubelet::new(meta.site.root.path(), Manner::Current, pods());
    describe(&meta, "0000:03:02.1", INFO);
    meta.answer("two", "ADD.fail", r#"{"code": 113, "msg": "no"}"#);
    meta.call("ADD", &meta.conf("a", json!({}))).fails(113, "no");
    assert_eq!(described(&meta), NOTHING);
}
