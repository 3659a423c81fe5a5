use proptest::prelude::*;
use serde_json::json;

use super::*;

#[track_caller]
fn one(text: &str) -> Selection {
    let mut all = parse_networks(text, "web").expect("is valid");
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[track_caller]
fn refused(text: &str) -> String {
    parse_networks(text, "web").expect_err("is refused").to_string()
}

fn named(namespace: &str, name: &str, ifname: Option<&str>) -> Selection {
    Selection {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        ifname: ifname.map(|it| IfName::parse("x", it).expect("is valid")),
        ..Selection::default()
    }
}

#[test]
fn short_form() {
    assert_eq!(parse_networks("", "web").expect("asks for nothing"), []);
    let expected = [named("web", "a", None), named("infra", "b", Some("net7")), named("web", "a", None)];
    assert_eq!(parse_networks("a, infra/b@net7 ,a", "web").expect("is valid"), expected);
}

#[test]
fn mistakes_in_the_short_form_are_quoted_with_what_to_write() {
    let begin = "k8s.v1.cni.cncf.io/networks";
    let form = "write namespace/name@interface";
    assert_eq!(refused("a/b/c"), format!("{begin} `a/b/c`: at most one `/` is allowed: {form}"));
    assert_eq!(refused("a@b@c"), format!("{begin} `a@b@c`: at most one `@` is allowed: {form}"));
    for text in ["a,", "ns/", "ns/@eth1", " "] {
        assert!(refused(text).contains("a name is missing"), "{text}");
    }
    for text in ["A", "a_b", "-a", "a-", "ns-/a", "a@Net1", "a b", "@"] {
        let error = refused(text);
        assert!(error.contains(form), "{text}: {error}");
    }
    assert!(refused("a@net1234567890123").contains("at most 15 bytes"));
}

#[test]
fn json_form_with_every_field() {
    let selection =
        one(r#"[{"Name": "mv", "namespace": "infra", "interface": "lan0", "ips": ["10.0.0.5/24", "fd00::5"],
            "mac": "0A:58:0a:01:02:03", "default-route": ["10.0.0.1", "fd00::1"],
            "infiniband-guid": "00:11:22:33:44:55:66:77",
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "x": 1}],
            "bandwidth": {"ingressRate": 100}, "cni-args": {"a": {"b": 1}}, "deviceID": "0000:01:00.0",
            "example.org/own": true}]"#);
    assert_eq!(
        selection,
        Selection {
            ips: ["10.0.0.5/24", "fd00::5"].map(|ip| RequestedIp::parse("x", ip).expect("is valid")).to_vec(),
            mac: Some(Mac::new([0x0a, 0x58, 0x0a, 1, 2, 3])),
            default_route: Some(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            infiniband_guid: Some("00:11:22:33:44:55:66:77".into()),
            port_mappings: Some(json!([{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}])),
            bandwidth: Some(
                json!({"ingressRate": 100, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0})
            ),
            cni_args: json!({"a": {"b": 1}}).as_object().cloned(),
            device_id: Some("0000:01:00.0".into()),
            ..named("infra", "mv", Some("lan0"))
        }
    );
}

#[test]
fn the_obsolete_key_for_the_interface_is_still_read() {
    assert_eq!(one(r#"[{"name": "a", "interfaceRequest": "lan0"}]"#), named("web", "a", Some("lan0")));
    let both = r#"[{"name": "a", "interfaceRequest": "old", "interface": "new"}]"#;
    assert_eq!(one(both), named("web", "a", Some("new")));
}

#[test]
fn an_empty_list_of_gateways_is_not_the_same_as_none() {
    assert_eq!(one(r#"[{"name": "a", "default-route": []}]"#).default_route, Some(vec![]));
    assert_eq!(one(r#"[{"name": "a"}]"#).default_route, None);
}

#[test]
fn claims_are_read_and_exclude_addresses() {
    assert_eq!(one(r#"[{"name": "a", "ipam-claim-reference": "c"}]"#).ipam_claim.as_deref(), Some("c"));
    let both = r#"[{"name": "a", "ipam-claim-reference": "c", "ips": ["10.0.0.5"]}]"#;
    assert!(refused(both).contains("[0].ipam-claim-reference `c`: a claim has its own addresses"));
}

#[test]
fn mistakes_in_the_json_form_are_quoted_with_what_to_write() {
    for (text, expected) in [
        (r#"[{"name": "a""#, r#"annotation k8s.v1.cni.cncf.io/networks `[{"name": "a"` is not valid JSON"#),
        (r#"{"name": "a"}"#, "write a list, also for one network"),
        (r#"["a"]"#, "[0] `\"a\"` is not a JSON object"),
        ("[{}]", "[0].name is missing"),
        (r#"[{"name": "a", "ips": "10.0.0.5"}]"#, "[0].ips `10.0.0.5`: write a list, also for one address"),
        (r#"[{"name": "a", "ips": ["10.0.0.500"]}]"#, "[0].ips[0] `10.0.0.500`: write an address"),
        (r#"[{"name": "a", "mac": "x"}]"#, "[0].mac `x`: write a hardware address"),
        (r#"[{"name": "a", "default-route": "10.0.0.1"}]"#, "[0].default-route `10.0.0.1`: write a list"),
        (r#"[{"name": "a", "default-route": ["10.0.0.1/24"]}]"#, "[0].default-route[0] `10.0.0.1/24`"),
        (r#"[{"name": "a", "infiniband-guid": "00:11"}]"#, "[0].infiniband-guid `00:11`: write a GUID"),
        (r#"[{"name": "a", "portMappings": [{"hostPort": 65536}]}]"#, "[0].portMappings[0].hostPort `65536`"),
        (r#"[{"name": "a", "bandwidth": {"egressRate": "1M"}}]"#, "[0].bandwidth.egressRate `\"1M\"`"),
        (r#"[{"name": "a", "cni-args": []}]"#, "[0].cni-args `[]` is not a JSON object"),
        (r#"[{"name": "a"}, {"name": "b", "interface": "a/b"}]"#, "[1].interface `a/b`"),
    ] {
        let error = refused(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_default_network_is_one() {
    let parse = |text| parse_default_network(text, "kube-system");
    assert_eq!(parse("mv").expect("is valid"), Some(named("kube-system", "mv", None)));
    assert_eq!(parse("").expect("is none"), None);
    assert!(parse("a,b").expect_err("are two").to_string().contains("a pod has one default network"));
}

proptest! {
    #[test]
    fn no_annotation_makes_the_parser_panic(text: String) {
        let _ = parse_networks(&text, "web");
    }

    #[test]
    fn what_the_short_form_accepts_is_a_name(text in "[a-z0-9/@,. -]{0,20}") {
        if let Ok(all) = parse_networks(&text, "web") {
            prop_assert!(all.iter().all(|it| is_label(&it.name) && is_label(&it.namespace)));
        }
    }
}

#[test]
fn a_long_mistake_is_quoted_in_part() {
    for text in [format!("[{}", "x".repeat(100_000)), format!("A{}", "x".repeat(100_000))] {
        let error = parse_networks(&text, "web").expect_err("is wrong").to_string();
        assert!(error.len() < 600 && error.contains('…'), "{error}");
    }
}
