use super::*;
use crate::spec::annotation::parse_networks;

fn eth0() -> IfName {
    IfName::parse("x", "eth0").expect("is valid")
}

fn delegate(index: usize, conf: Value, selection: &str) -> Delegate {
    let conf = NetworkConf::parse(conf.to_string().as_bytes(), Some("mv")).expect("is valid");
    let selection = parse_networks(selection, "web").expect("is valid").remove(0);
    Delegate::new(index, &eth0(), "web/mv".into(), Some("web".into()), conf, selection).expect("is valid")
}

fn host_local() -> Value {
    json!({"type": "bridge", "ipam": {"type": "host-local"}})
}

fn args(delegate: &Delegate, call: &str) -> String {
    let pairs = delegate.args(&CniArgs::parse(call).expect("is valid"));
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
}

const CALL: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;\
                    K8S_POD_UID=u;Own=x;MAC=02:00:00:00:00:09";

#[test]
fn interfaces_are_numbered_by_position() {
    let name = |index, selection| delegate(index, json!({"type": "bridge"}), selection).ifname.to_string();
    assert_eq!(name(0, "mv"), "eth0");
    assert_eq!(name(2, "mv"), "net2");
    assert_eq!(name(1, "mv@lan0"), "lan0");
}

#[test]
fn arguments_name_the_pod_once_and_keep_what_the_runtime_passed() {
    let second =
        delegate(1, host_local(), r#"[{"name": "mv", "ips": ["10.0.0.5/24"], "mac": "02:00:00:00:00:01"}]"#);
    assert_eq!(
        args(&second, CALL),
        "IgnoreUnknown=true;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u;Own=x;\
         MAC=02:00:00:00:00:01;IP=10.0.0.5/24"
    );
    let none = delegate(1, host_local(), "mv");
    assert!(!args(&none, CALL).contains("MAC"), "what the runtime asks of eth0 is not asked of net1");
    let first = delegate(0, host_local(), "mv");
    assert!(args(&first, CALL).ends_with(";Own=x;MAC=02:00:00:00:00:09"));
}

#[test]
fn two_addresses_reach_host_local_in_a_way_that_it_understands() {
    let two = r#"[{"name": "mv", "ips": ["10.0.0.5/24", "fd00::5/64"]}]"#;
    let without = delegate(1, host_local(), two);
    assert!(!args(&without, "").contains("IP="));
    assert_eq!(without.conf.raw()["args"]["cni"]["ips"], json!(["10.0.0.5/24", "fd00::5/64"]));
    let declared = delegate(
        1,
        json!({"type": "bridge", "capabilities": {"ips": true}, "ipam": {"type": "host-local"}}),
        two,
    );
    assert!(!args(&declared, "").contains("IP=") && declared.conf.raw().get("args").is_none());
    let other = delegate(1, json!({"type": "bridge", "ipam": {"type": "static"}}), two);
    assert!(args(&other, "").ends_with("IP=10.0.0.5/24,fd00::5/64"));
}

#[test]
fn what_the_runtime_passes_is_for_the_first_network() {
    let runtime = json!({"portMappings": [{"hostPort": 1}], "dns": {}});
    let runtime = runtime.as_object().expect("is an object");
    assert_eq!(delegate(0, host_local(), "mv").capabilities(runtime), *runtime);
    assert!(delegate(1, host_local(), "mv").capabilities(runtime).is_empty());
    let asks = delegate(
        1,
        host_local(),
        r#"[{"name": "mv", "portMappings": [{"hostPort": 2, "containerPort": 3}]}]"#,
    );
    assert_eq!(asks.capabilities(runtime)["portMappings"], json!([{"hostPort": 2, "containerPort": 3}]));
}

#[test]
fn wishes_that_nobody_hears_are_named() {
    let conf = json!({"plugins": [{"type": "a", "capabilities": {"ips": true}}, {"type": "b", "capabilities": {"bandwidth": true}}]});
    let asks = r#"[{"name": "mv", "ips": ["10.0.0.5"], "mac": "02:00:00:00:00:01", "bandwidth": {}, "deviceID": "d"}]"#;
    assert_eq!(delegate(1, conf, asks).unheard(), ["mac"]);
}

#[test]
fn cni_args_win_over_the_networks_own() {
    let conf =
        json!({"plugins": [{"type": "a", "Args": {"CNI": {"x": 1, "y": 2}, "other": 3}}, {"type": "b"}]});
    let delegate = delegate(1, conf, r#"[{"name": "mv", "cni-args": {"x": 9}}]"#);
    assert_eq!(
        delegate.conf.raw()["plugins"],
        json!([{"type": "a", "Args": {"CNI": {"x": 9, "y": 2}, "other": 3}},
        {"type": "b", "args": {"cni": {"x": 9}}}])
    );
}

#[test]
fn a_device_is_told_to_each_plugin() {
    let delegate = delegate(
        1,
        json!({"type": "sriov", "capabilities": {"CNIDeviceInfoFile": true}}),
        r#"[{"name": "mv", "deviceID": "0000:01:00.0"}]"#,
    );
    assert_eq!(delegate.conf.raw()["pciBusID"], "0000:01:00.0");
    let id = ContainerId::parse("x", "c1").expect("is valid");
    assert_eq!(delegate.capabilities(&Map::new())["deviceID"], "0000:01:00.0");
    assert_eq!(delegate.device_file(&id).as_deref(), Some("web-mv-c1_net1"));
}

#[test]
fn a_cached_delegate_is_what_was_executed() {
    for conf in [host_local(), json!({"cniVersion": "1.0.0", "plugins": [{"type": "a"}, {"type": "b"}]})] {
        let asks = r#"[{"name": "mv", "interface": "lan0", "ips": ["10.0.0.5/24", "fd00::5"], "mac": "02:00:00:00:00:01",
                        "cni-args": {"x": 1}, "deviceID": "d", "default-route": ["10.0.0.1"]}]"#;
        let made = delegate(1, conf, asks);
        let read = Delegate::from_cached(1, &eth0(), &made.to_cached()).expect("is our own");
        assert_eq!((&read.conf, &read.ifname, &read.label), (&made.conf, &made.ifname, &made.label));
        assert_eq!(
            (&read.selection.ips, &read.selection.device_id),
            (&made.selection.ips, &made.selection.device_id)
        );
        assert_eq!(read.nad_namespace.as_deref(), Some("web"));
    }
}

#[test]
fn multus_finds_its_own_keys() {
    let one =
        delegate(1, host_local(), r#"[{"name": "mv", "interface": "lan0", "mac": "02:00:00:00:00:01"}]"#)
            .to_cached();
    assert_eq!(one["Conf"], json!({"type": "bridge", "ipam": {"type": "host-local"}, "name": "mv"}));
    assert_eq!(one["ConfList"], json!({"plugins": null}));
    assert_eq!((&one["ifnameRequest"], &one["macRequest"]), (&json!("lan0"), &json!("02:00:00:00:00:01")));
    assert_eq!(one["IsFilterV4Gateway"], false);
    let bytes = base64::decode(one["Bytes"].as_str().expect("is text")).expect("is base64");
    assert_eq!(serde_json::from_slice::<Value>(&bytes).expect("is JSON"), one["Conf"]);
    let list = delegate(1, json!({"plugins": [{"type": "a"}]}), "mv").to_cached();
    assert_eq!(list["ConfList"]["plugins"], json!([{"type": "a"}]));
    assert_eq!(list["Conf"], json!({"dns": {}, "ipam": {}}));
}

#[test]
fn a_torn_cache_is_an_error_that_says_where() {
    let error = Delegate::from_cached(1, &eth0(), &json!({"Bytes": "!"})).expect_err("is torn");
    assert_eq!(error.to_string(), "delegates[1].Bytes `!`: must be base64");
    assert!(Delegate::from_cached(0, &eth0(), &json!({})).is_err());
}
