//! docs/metrics.md against what the agent serves, and deploy/monitoring against the page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

const MONITORING: &str = "../deploy/monitoring";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).expect("YAML")
}

/// Names of metrics anywhere in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| is_metric(word)).map(str::to_owned).collect()
}

fn is_metric(word: &str) -> bool {
    word.starts_with("netpath_") || word.starts_with("process_")
}

/// What the agent serves, as Prometheus sees it: the encoder adds `_total` to counters.
fn served() -> BTreeSet<String> {
    let source = read("src/agent/metrics.rs");
    let mut found = BTreeSet::new();
    let mut before = "";
    for (index, text) in source.split('"').enumerate() {
        if index % 2 == 1 && is_metric(text) {
            let suffix = match before.trim_end() {
                before if before.ends_with("counter(") => "_total",
                before if before.ends_with("gauge(") || before.ends_with("name:") => "",
                before => panic!("{text} is neither a counter nor a gauge: {before}"),
            };
            assert!(found.insert(format!("{text}{suffix}")), "{text} is served twice");
        }
        before = text;
    }
    found
}

/// The first column of the table of metrics.
fn documented(page: &str) -> BTreeSet<String> {
    let rows = page.lines().skip_while(|line| !line.starts_with("| metric |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| metrics(row.split('|').nth(1).expect("a cell"))).collect()
}

/// The alerts.
fn rules() -> Vec<Value> {
    let file = yaml(&format!("{MONITORING}/rules.yaml"));
    let groups = file["spec"]["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

#[test]
fn the_page_lists_what_is_served_and_nothing_else() {
    let (page, served) = (read("../docs/metrics.md"), served());
    assert!(30 < served.len(), "only {} metrics were found", served.len());
    assert_eq!(documented(&page), served);
    assert_eq!(metrics(&page), served, "what is named in passing exists as well");
}

#[test]
fn what_is_watched_is_served() {
    let served = served();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(MONITORING)).expect("files") {
        let path = entry.expect("an entry").path();
        let named = metrics(&fs::read_to_string(&path).expect("text"));
        let unknown: Vec<_> = named.difference(&served).collect();
        assert!(unknown.is_empty(), "{}: nobody serves {unknown:?}", path.display());
    }
}

#[test]
fn alerts_are_explained_and_tested_and_say_what_to_do() {
    let rows = read("../docs/metrics.md");
    let rows = rows.lines().filter_map(|line| line.strip_prefix("| `Netpath")?.split_once("` | "));
    let rows: BTreeSet<_> = rows
        .map(|(name, rest)| (format!("Netpath{name}"), rest.split(' ').next().unwrap_or_default().to_owned()))
        .collect();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let severities = rules().iter().map(|it| (text(&it["alert"]), text(&it["labels"]["severity"]))).collect();
    assert_eq!(rows, severities);
    let tests = read(&format!("{MONITORING}/rules.test.yaml"));
    for (name, _) in &rows {
        let fires = format!("labels: ALERTS{{alertname=\"{name}\",alertstate=\"firing\"");
        assert!(tests.contains(&fires), "no test shows {name} firing");
    }
    for rule in rules() {
        let (name, annotations) = (&rule["alert"], &rule["annotations"]);
        assert!(text(&annotations["summary"]).ends_with('.'), "{name}");
        assert!(text(&annotations["description"]).contains("`netpath "), "{name} does not say what to do");
    }
}

#[test]
fn the_dashboard_asks_the_source_that_is_chosen() {
    let dashboard: Value =
        serde_json::from_str(&read(&format!("{MONITORING}/dashboard.json"))).expect("JSON");
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("queries");
        assert!(!targets.is_empty(), "{panel}");
        for query in targets {
            assert_eq!(query["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(!metrics(query["expr"].as_str().expect("a query")).is_empty(), "{query}");
        }
    }
}

#[test]
fn labels_are_the_workloads_and_the_job_is_the_one_that_alerts_know() {
    let monitor = yaml(&format!("{MONITORING}/pod-monitor.yaml"));
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let metadata = &monitor["metadata"];
    let job = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
    let asks = rules().into_iter().filter(|rule| text(&rule["expr"]).contains("job=\""));
    for rule in asks {
        let expression = text(&rule["expr"]);
        assert_eq!(expression.matches("job=\"").count(), expression.matches(&job).count(), "{expression}");
    }
    let [endpoint] = &monitor["spec"]["podMetricsEndpoints"].as_array().expect("one")[..] else {
        panic!("{monitor}")
    };
    assert_eq!((&endpoint["port"], &endpoint["honorLabels"]), (&"metrics".into(), &true.into()));
}
