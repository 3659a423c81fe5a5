//! The admission policies of deploy/, evaluated: each expression by a CEL interpreter, over pods that must be
//! allowed, refused or warned about. What a server adds (matching by resource and namespace) is read off the file.

use std::fs;

use cel::{Context, Program, Value as Cel};
use serde_json::{Value, json};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";

fn documents() -> Vec<Value> {
    let files = ["net-admin.yaml", "own-node.yaml"].into_iter().flat_map(|file| {
        let path = format!("{}/../deploy/admission/{file}", env!("CARGO_MANIFEST_DIR"));
        let all: Vec<Value> =
            serde_saphyr::from_multiple(&fs::read_to_string(path).expect("the policies")).expect("YAML");
        all
    });
    files.collect()
}

#[track_caller]
fn named(kind: &str, name: &str) -> Value {
    let found = documents().into_iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// A request as the API server shows it to a policy.
struct Request {
    operation: &'static str,
    sub_resource: Option<&'static str>,
    object: Value,
    old: Value,
    user: Value,
}

/// What a policy says of a request: `None` where it does not match, else the messages of what is not fulfilled.
fn judge(policy: &Value, request: &Request) -> Option<Vec<String>> {
    let mut context = Context::default();
    let mut asked = json!({ "operation": request.operation });
    if let Some(name) = request.sub_resource {
        asked["subResource"] = json!(name);
    }
    if !request.user.is_null() {
        asked["userInfo"] = request.user.clone();
    }
    for (name, value) in [("request", &asked), ("object", &request.object), ("oldObject", &request.old)] {
        context.add_variable(name, value.clone()).expect("a value");
    }
    let holds = |expression: &Value, context: &Context| {
        let text = expression.as_str().expect("an expression");
        let program = Program::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        match program.execute(context) {
            Ok(Cel::Bool(answer)) => answer,
            other => panic!("{text}: {other:?}"),
        }
    };
    let list = |key: &str| policy["spec"][key].as_array().cloned().unwrap_or_default();
    // In order: a condition may rely on those before it.
    if !list("matchConditions").iter().all(|condition| holds(&condition["expression"], &context)) {
        return None;
    }
    let mut variables = std::collections::HashMap::new();
    for variable in list("variables") {
        let text = variable["expression"].as_str().expect("an expression");
        let value = Program::compile(text).expect("compiles").execute(&context).expect("evaluates");
        variables.insert(variable["name"].as_str().expect("a name").to_owned(), value);
    }
    context.add_variable_from_value("variables", variables);
    let broken = list("validations").into_iter().filter(|rule| !holds(&rule["expression"], &context));
    Some(broken.map(|rule| rule["message"].as_str().expect("a message").to_owned()).collect())
}

/// A pod with this annotation and these keys of its specification.
fn pod(annotation: Option<(&str, &str)>, spec: Value) -> Value {
    let mut pod =
        json!({ "metadata": { "name": "net-pod" }, "spec": { "containers": [{ "name": "main" }] } });
    if let Some((key, value)) = annotation {
        pod["metadata"]["annotations"] = json!({ key: value });
    }
    for (key, value) in spec.as_object().expect("keys") {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn create(object: Value) -> Request {
    Request { operation: "CREATE", sub_resource: None, object, old: Value::Null, user: Value::Null }
}

/// A specification with one container whose security context is this.
fn with(context: Value) -> Value {
    json!({ "containers": [{ "name": "harmless" }, { "name": "main", "securityContext": context }] })
}

fn adds(capabilities: &[&str]) -> Value {
    with(json!({ "capabilities": { "add": capabilities } }))
}

#[test]
fn who_could_get_past_a_zone_is_refused() {
    let policy = named("ValidatingAdmissionPolicy", "netpath-net-admin");
    let on = Some((NETWORKS, "privatezone"));
    let capability = Some("NET_ADMIN, SYS_ADMIN");
    let privileged = Some("may not be privileged");
    let host = Some("the host's network");
    for (what, annotation, spec, expected) in [
        ("nothing asked for", on, json!({}), None),
        ("an empty context", on, with(json!({})), None),
        ("privileged: false", on, with(json!({ "privileged": false })), None),
        ("harmless capabilities", on, adds(&["NET_BIND_SERVICE", "NET_RAW"]), None),
        ("a capability of a like name", on, adds(&["NET_ADMINISTRATOR"]), None),
        ("hostNetwork: false", on, json!({ "hostNetwork": false }), None),
        ("no network, NET_ADMIN", None, adds(&["NET_ADMIN"]), None),
        ("no network, host network", None, json!({ "hostNetwork": true }), None),
        ("an empty annotation", Some((NETWORKS, "")), adds(&["NET_ADMIN"]), None),
        ("another annotation", Some(("example.com/networks", "x")), adds(&["NET_ADMIN"]), None),
        ("NET_ADMIN", on, adds(&["NET_ADMIN"]), capability),
        ("NET_ADMIN behind others", on, adds(&["CHOWN", "NET_ADMIN"]), capability),
        ("NET_ADMIN with its prefix", on, adds(&["CAP_NET_ADMIN"]), capability),
        ("NET_ADMIN in small letters", on, adds(&["net_admin"]), capability),
        ("ALL", on, adds(&["ALL"]), capability),
        ("SYS_ADMIN", on, adds(&["SYS_ADMIN"]), capability),
        ("SYS_MODULE", on, adds(&["SYS_MODULE"]), capability),
        ("BPF", on, adds(&["BPF"]), capability),
        ("privileged", on, with(json!({ "privileged": true })), privileged),
        ("the host's network", on, json!({ "hostNetwork": true }), host),
        ("by the default network", Some((DEFAULT_NETWORK, "privatezone")), adds(&["NET_ADMIN"]), capability),
        (
            "an init container",
            on,
            json!({ "initContainers": [{ "name": "i", "securityContext": { "privileged": true } }] }),
            privileged,
        ),
        (
            "an ephemeral container",
            on,
            json!({ "ephemeralContainers": [{
                "name": "debug", "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } }
            }] }),
            capability,
        ),
    ] {
        let messages = judge(&policy, &create(pod(annotation, spec))).unwrap_or_default();
        match expected {
            None => assert_eq!(messages, Vec::<String>::new(), "{what}"),
            Some(text) => assert!(messages.len() == 1 && messages[0].contains(text), "{what}: {messages:?}"),
        }
    }
}

#[test]
fn a_pod_that_is_there_may_be_changed_but_not_asked_for_more() {
    let policy = named("ValidatingAdmissionPolicy", "netpath-net-admin");
    let admin = || adds(&["NET_ADMIN"]);
    let update = |old: Value, object: Value, sub_resource| Request {
        operation: "UPDATE",
        sub_resource,
        object,
        old,
        user: Value::Null,
    };
    let on = Some((NETWORKS, "privatezone"));
    let mut labelled = pod(on, admin());
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    // Its finalizers must come off, too.
    assert_eq!(judge(&policy, &update(pod(on, admin()), labelled, None)), None);
    // Without a network it was allowed; with one a new sandbox would be attached.
    for old in [None, Some(("example.com/x", "y")), Some((NETWORKS, "another")), Some((NETWORKS, ""))] {
        let messages =
            judge(&policy, &update(pod(old, admin()), pod(on, admin()), None)).expect("it matches");
        assert_eq!(messages.len(), 1, "{old:?}");
    }
    assert_eq!(judge(&policy, &update(pod(None, json!({})), pod(on, json!({})), None)), Some(Vec::new()));
    // `kubectl debug` comes by a resource of its own.
    let debug = |capabilities: &[&str]| {
        let container =
            json!({ "name": "d", "securityContext": { "capabilities": { "add": capabilities } } });
        pod(on, json!({ "ephemeralContainers": [container] }))
    };
    let by_debug = |object| update(pod(on, json!({})), object, Some("ephemeralcontainers"));
    assert_eq!(judge(&policy, &by_debug(debug(&["NET_ADMIN"]))).expect("it matches").len(), 1);
    assert_eq!(judge(&policy, &by_debug(debug(&["SYS_TIME"]))), Some(Vec::new()));
}

#[test]
fn who_keeps_net_raw_is_warned() {
    let policy = named("ValidatingAdmissionPolicy", "netpath-net-raw");
    let on = Some((NETWORKS, "privatezone"));
    let only = |context: Value| json!({ "containers": [{ "name": "main", "securityContext": context }] });
    for (what, annotation, spec, warned) in [
        ("nothing said", on, json!({}), true),
        ("others dropped", on, only(json!({ "capabilities": { "drop": ["CHOWN"] } })), true),
        ("NET_RAW dropped", on, only(json!({ "capabilities": { "drop": ["NET_RAW"] } })), false),
        ("ALL dropped", on, only(json!({ "capabilities": { "drop": ["ALL"] } })), false),
        (
            "dropped and added",
            on,
            only(json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_RAW"] } })),
            true,
        ),
        ("another container keeps it", on, with(json!({ "capabilities": { "drop": ["ALL"] } })), true),
        ("no network", None, json!({}), false),
    ] {
        let messages = judge(&policy, &create(pod(annotation, spec))).unwrap_or_default();
        assert_eq!(messages.len(), usize::from(warned), "{what}: {messages:?}");
    }
}

#[test]
fn policies_are_bound_and_fail_as_they_say() {
    for (name, failure, action) in
        [("netpath-net-admin", "Fail", "Deny"), ("netpath-net-raw", "Ignore", "Warn")]
    {
        let (policy, binding) =
            (named("ValidatingAdmissionPolicy", name), named("ValidatingAdmissionPolicyBinding", name));
        assert_eq!(policy["spec"]["failurePolicy"], failure);
        assert_eq!(binding["spec"]["policyName"], name);
        assert_eq!(binding["spec"]["validationActions"], json!([action]));
        let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
        assert_eq!((&rule["apiGroups"], &rule["apiVersions"]), (&json!([""]), &json!(["v1"])), "{name}");
        let excepted = &binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"];
        assert_eq!(
            excepted,
            &json!([{ "key": "netpath/net-admin", "operator": "NotIn", "values": ["allowed"] }])
        );
    }
    let rule = &named("ValidatingAdmissionPolicy", "netpath-net-admin")["spec"]["matchConstraints"]["resourceRules"]
        [0];
    assert_eq!(rule["operations"], json!(["CREATE", "UPDATE"]));
    assert_eq!(rule["resources"], json!(["pods", "pods/ephemeralcontainers"]));
    for document in documents() {
        assert_eq!(document["apiVersion"], "admissionregistration.k8s.io/v1");
    }
}

/// Someone with a token of this account of netpath's, bound to this node.
fn user(account: &str, node: Option<&str>) -> Value {
    let extra = match node {
        Some(node) => json!({ "authentication.kubernetes.io/node-name": [node] }),
        None => json!({}),
    };
    json!({ "username": format!("system:serviceaccount:netpath:{account}"), "extra": extra })
}

#[test]
fn the_plugin_writes_network_status_of_its_own_nodes_pods_and_nothing_else() {
    let policy = named("ValidatingAdmissionPolicy", "netpath-own-node");
    let old = json!({
        "metadata": { "labels": { "app": "web" }, "annotations": { NETWORKS: "mv" } },
        "spec": { "nodeName": "worker01" }, "status": { "podIP": "10.244.1.2" },
    });
    let with = |path: &str, value: Value| {
        let mut object = old.clone();
        object["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"] = json!("[]");
        *object.pointer_mut(path).unwrap_or(&mut Value::Null) = value;
        object
    };
    let status = with("/none", Value::Null);
    let mut other = status.clone();
    other["spec"]["nodeName"] = json!("worker02");
    let mut added = status.clone();
    added["metadata"]["annotations"]["example.com/x"] = json!("y");
    let mut finalized = status.clone();
    finalized["metadata"]["finalizers"] = json!(["example.com/x"]);
    let here = || user("netpath", Some("worker01"));
    for (what, object, who, expected) in [
        ("its own annotation", status.clone(), here(), None),
        ("a pod of another node", other, here(), Some("own node")),
        ("a token of no node", status.clone(), user("netpath", None), Some("own node")),
        ("a token of another node", status.clone(), user("netpath", Some("worker02")), Some("own node")),
        ("another annotation", added, here(), Some("network-status")),
        (
            "one changed",
            with("/metadata/annotations", json!({ NETWORKS: "other" })),
            here(),
            Some("network-status"),
        ),
        ("one taken away", with("/metadata/annotations", json!({})), here(), Some("network-status")),
        ("a finalizer", finalized, here(), Some("finalizers")),
        ("a label", with("/metadata/labels", json!({ "app": "db" })), here(), Some("labels")),
        ("podIP", with("/status/podIP", json!("10.244.9.9")), here(), Some("status")),
    ] {
        let request = Request {
            operation: "UPDATE",
            sub_resource: Some("status"),
            object,
            old: old.clone(),
            user: who,
        };
        let messages = judge(&policy, &request).expect("it is the plugin");
        match expected {
            None => assert_eq!(messages, Vec::<String>::new(), "{what}"),
            Some(text) => assert!(messages.len() == 1 && messages[0].contains(text), "{what}: {messages:?}"),
        }
    }
    let kubelet = json!({ "username": "system:node:worker02", "extra": {} });
    let request =
        Request { operation: "UPDATE", sub_resource: Some("status"), object: status, old, user: kubelet };
    assert_eq!(judge(&policy, &request), None);
}

#[test]
fn the_agent_mints_tokens_of_its_own_node() {
    let policy = named("ValidatingAdmissionPolicy", "netpath-token");
    let request = |bound: Value, seconds: u32, user: Value| {
        let object = json!({ "spec": { "boundObjectRef": bound, "expirationSeconds": seconds } });
        judge(&policy, &Request { operation: "CREATE", sub_resource: None, object, old: Value::Null, user })
    };
    let node = |name: &str| json!({ "kind": "Node", "apiVersion": "v1", "name": name });
    let here = || user("netpath-agent", Some("worker01"));
    assert_eq!(request(node("worker01"), 86400, here()), Some(Vec::new()));
    for (bound, seconds, who) in [
        (node("worker02"), 86400, here()),
        (node("worker01"), 86401, here()),
        (json!({ "kind": "Pod", "apiVersion": "v1", "name": "worker01" }), 3600, here()),
        (node("worker01"), 3600, user("netpath-agent", None)),
    ] {
        assert_eq!(request(bound.clone(), seconds, who).map(|all| all.len()), Some(1), "{bound} {seconds}");
    }
    let unbound = json!({ "spec": { "expirationSeconds": 3600 } });
    let mint =
        Request { operation: "CREATE", sub_resource: None, object: unbound, old: Value::Null, user: here() };
    assert_eq!(judge(&policy, &mint).map(|all| all.len()), Some(1));
    assert_eq!(request(node("worker02"), 3600, user("another", None)), None, "is not the agent's affair");
}
