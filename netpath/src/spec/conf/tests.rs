use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::spec::error::code;

/// A valid configuration with `keys` added or put in place of its own.
fn conf_with(keys: Value) -> Vec<u8> {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "mv", "type": "macvlan"});
    for (key, value) in keys.as_object().expect("keys are an object") {
        conf[key] = value.clone();
    }
    conf.to_string().into_bytes()
}

fn parse(keys: Value) -> Result<NetConf, ConfError> {
    NetConf::parse(&conf_with(keys))
}

fn attachment(container_id: &str, ifname: &str) -> ValidAttachment {
    ValidAttachment {
        container_id: ContainerId::parse("x", container_id).expect("is valid"),
        ifname: IfName::parse("x", ifname).expect("is valid"),
    }
}

#[test]
fn a_plain_configuration_has_nothing_else() {
    let conf = parse(json!({})).expect("is valid");
    assert_eq!(conf.name.as_str(), "mv");
    assert_eq!((conf.cni_version, conf.kind.as_str()), (CniVersion::V1_1_0, "macvlan"));
    assert_eq!((conf.prev_result.as_ref(), conf.valid_attachments.as_ref(), conf.zone()), (None, None, None));
    assert_eq!((conf.runtime, conf.args_cni), (RuntimeConfig::default(), ArgsCni::default()));
    assert_eq!((conf.ipam, conf.disable_gc), (IpamConf::None, false));
    assert!(conf.dns.is_empty());
}

#[test]
fn everything_is_read_whatever_the_case_of_keys() {
    let conf = parse(json!({
        "DisableGC": true,
        "DNS": {"Nameservers": ["1.1.1.1"]},
        "RuntimeConfig": {"Mac": "0a:58:0a:01:02:03", "IPs": ["10.0.0.5", "fd00::5/64"],
                          "ipranges": [[{"subnet": "10.7.0.0/24"}]]},
        "ARGS": {"Cni": {"ips": ["10.0.0.6/24"], "mac": "0a:58:0a:01:02:04"}},
        "Zone": {"policy": "private"},
        "prevresult": {"interfaces": [{"name": "net1"}], "ips": [{"address": "10.0.0.9/24"}]},
        "unknown": {"deep": [1, 2.5, null]},
    }))
    .expect("is valid");
    assert!(conf.disable_gc);
    assert_eq!(conf.dns.nameservers, ["1.1.1.1"]);
    assert_eq!(conf.runtime.mac.map(|it| it.to_string()).as_deref(), Some("0a:58:0a:01:02:03"));
    let ips: Vec<String> = conf.runtime.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.5", "fd00::5/64"]);
    assert_eq!(conf.runtime.ip_ranges[0].to_string(), "10.7.0.1-10.7.0.254");
    assert_eq!(conf.args_cni.ips[0].to_string(), "10.0.0.6/24");
    assert_eq!(conf.args_cni.mac.map(|it| it.to_string()).as_deref(), Some("0a:58:0a:01:02:04"));
    assert_eq!(conf.zone(), Some(&json!({"policy": "private"})));
    let previous = conf.prev_result.expect("is there");
    assert_eq!((previous.interfaces[0].name.as_str(), previous.ips.len()), ("net1", 1));
    assert_eq!(conf.raw["unknown"], json!({"deep": [1, 2.5, null]}));
}

#[test]
fn a_previous_result_has_the_shape_of_the_configurations_version() {
    let conf = json!({"cniVersion": "0.2.0", "prevResult": {"ip4": {"ip": "10.0.0.9/24"}}});
    assert_eq!(parse(conf).expect("is valid").prev_result.expect("is there").ips.len(), 1);
}

#[test]
fn no_version_is_the_oldest() {
    let conf = NetConf::parse(br#"{"name": "mv", "type": "macvlan"}"#).expect("is valid");
    assert_eq!(conf.cni_version, CniVersion::V0_1_0);
}

#[test]
fn gc_hears_of_valid_attachments_by_either_key() {
    let list = |keys| parse(keys).expect("is valid").valid_attachments;
    let item = |id: &str| json!({"containerID": id, "ifname": "net1"});
    assert_eq!(list(json!({"cni.dev/valid-attachments": null})), None);
    assert_eq!(list(json!({"cni.dev/valid-attachments": []})), Some(vec![]));
    let one = Some(vec![attachment("a", "net1")]);
    assert_eq!(list(json!({"cni.dev/valid-attachments": [item("a")]})), one);
    assert_eq!(list(json!({"cni.dev/attachments": [item("a")]})), one);
    let both =
        json!({"cni.dev/valid-attachments": [item("a")], "cni.dev/attachments": [item("b"), item("a")]});
    assert_eq!(list(both), Some(vec![attachment("a", "net1"), attachment("b", "net1")]));
}

#[test]
fn an_attachment_that_cannot_be_read_is_an_error_and_not_overlooked() {
    let list = |item| parse(json!({"cni.dev/valid-attachments": [item]})).expect_err("is wrong").to_string();
    let path = "cni.dev/valid-attachments[0]";
    assert_eq!(list(json!({"ifname": "a"})), format!("{path}.containerID is missing: name the container"));
    assert_eq!(
        list(json!({"containerID": "a"})),
        format!("{path}.ifname is missing: name the interface in the sandbox")
    );
    assert!(
        list(json!({"containerID": "../a", "ifname": "a"}))
            .starts_with(&format!("{path}.containerID `../a`: "))
    );
    assert_eq!(list(json!("a")), format!("{path} `\"a\"` is not a JSON object"));
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    for (keys, code, expected) in [
        (json!({"name": null}), code::CONF, "name is missing: give the network a name"),
        (
            json!({"name": "a/b"}),
            code::CONF,
            "name `a/b`: it has ASCII letters, digits, `_`, `.` and `-` only",
        ),
        (json!({"name": 5}), code::DECODE, "name `5` is not a string"),
        (json!({"type": ""}), code::CONF, "type is missing: name the plugin, such as macvlan"),
        (
            json!({"type": "../sh"}),
            code::CONF,
            "type `../sh`: write the file name of a plugin, without a directory",
        ),
        (
            json!({"type": ".."}),
            code::CONF,
            "type `..`: write the file name of a plugin, without a directory",
        ),
        (
            json!({"type": "a/"}),
            code::CONF,
            "type `a/`: write the file name of a plugin, without a directory",
        ),
        (
            json!({"ipam": {"type": "/bin/sh"}}),
            code::CONF,
            "ipam.type `/bin/sh`: write the file name of a plugin, without a directory",
        ),
        (
            json!({"cniVersion": "0.9.0"}),
            code::VERSION,
            "cniVersion `0.9.0` is not supported: use one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
        ),
        (json!({"cniVersion": 1}), code::DECODE, "cniVersion `1` is not a string"),
        (json!({"ipam": []}), code::DECODE, "ipam `[]` is not a JSON object"),
        (
            json!({"runtimeConfig": {"ips": "10.0.0.1"}}),
            code::DECODE,
            "runtimeConfig.ips `\"10.0.0.1\"` is not a list",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.0.0.1", "x"]}}),
            code::CONF,
            "runtimeConfig.ips[1] `x`: write an address without prefix length, such as 10.12.34.5",
        ),
        (
            json!({"args": {"cni": {"mac": "x"}}}),
            code::CONF,
            "args.cni.mac `x`: write a hardware address as six bytes: 0a:58:0a:01:02:03",
        ),
        (
            json!({"prevResult": {"ips": [{}]}}),
            code::CONF,
            "prevResult.ips[0].address is missing: write an address with its prefix length, such as 10.12.34.5/24",
        ),
    ] {
        let error = parse(keys).expect_err(expected);
        assert_eq!((error.to_string().as_str(), error.cni_code()), (expected, code));
    }
    for stdin in ["", "{", "junk"] {
        assert_eq!(NetConf::parse(stdin.as_bytes()).expect_err("is no JSON").cni_code(), code::DECODE);
    }
}

#[test]
fn version_is_answered_whatever_comes_in() {
    for (stdin, expected) in [
        (r#"{"cniVersion": "0.3.1"}"#, CniVersion::V0_3_1),
        (r#"{"CNIVERSION": "0.4.0", "name": "a/b"}"#, CniVersion::V0_4_0),
        (r#"{"cniVersion": "2.0.0"}"#, CniVersion::LATEST),
        (r#"{"cniVersion": 1}"#, CniVersion::LATEST),
        ("{}", CniVersion::LATEST),
        ("", CniVersion::LATEST),
        ("junk", CniVersion::LATEST),
    ] {
        assert_eq!(NetConf::parse_version(stdin.as_bytes()), expected, "{stdin}");
    }
}

/// `value` with the case of every key's letters chosen by `flips`.
fn recased(value: &Value, flips: &mut impl Iterator<Item = bool>) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries = Map::new();
            for (key, value) in map {
                let flip = |c: char| {
                    if flips.next().unwrap_or(false) {
                        c.to_ascii_uppercase()
                    } else {
                        c.to_ascii_lowercase()
                    }
                };
                let key: String = key.chars().map(flip).collect();
                entries.insert(key, recased(value, flips));
            }
            Value::Object(entries)
        }
        Value::Array(items) => items.iter().map(|item| recased(item, flips)).collect(),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn the_case_of_keys_means_nothing(flips in prop::collection::vec(any::<bool>(), 400)) {
        let conf = json!({
            "cniVersion": "1.1.0", "name": "mv", "type": "macvlan", "disableGC": true,
            "dns": {"nameservers": ["1.1.1.1"], "search": ["x"]},
            "ipam": {"type": "host-local", "dataDir": "/d", "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
                     "ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.5", "rangeEnd": "10.0.0.9"}]]},
            "runtimeConfig": {"mac": "0a:58:0a:01:02:03", "ips": ["10.0.0.5"], "ipRanges": []},
            "prevResult": {"interfaces": [{"name": "net1", "pciID": "x", "socketPath": "y"}]},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "net1"}],
        });
        let expected = NetConf::parse(conf.to_string().as_bytes()).expect("is valid");
        let recased = recased(&conf, &mut flips.into_iter());
        let mut actual = NetConf::parse(recased.to_string().as_bytes()).expect("is as valid");
        actual.raw = expected.raw.clone();
        prop_assert_eq!(actual, expected);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        let _ = NetConf::parse(&bytes);
        let _ = NetConf::parse_version(&bytes);
    }

    #[test]
    fn no_value_makes_the_parser_panic(
        key in "name|type|cniVersion|ipam|dns|runtimeConfig|args|prevResult|cni.dev/attachments",
        inner in "type|ips|ranges|addresses|routes|subnet|mac|cni|interfaces|range",
        scalar in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(1e300)), Just(json!("host-local")), Just(json!("::/0")),
            Just(json!([[]])), Just(json!([{}])), Just(json!({"x": []})), Just(json!("255.255.255.255/32")),
        ],
    ) {
        let _ = parse(json!({ key.clone(): scalar.clone() }));
        let _ = parse(json!({ key.clone(): { inner.clone(): scalar.clone(), "type": "host-local" } }));
        let _ = parse(json!({ key: { inner: [scalar], "type": "static" } }));
    }
}
