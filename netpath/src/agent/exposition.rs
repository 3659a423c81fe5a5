//! Numbers as OpenMetrics text.

use std::{collections::HashMap, fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder},
    metrics::MetricType,
    registry::Registry,
};

/// What numbers are of: labels that they share.
#[derive(Debug, Default)]
pub(super) struct Subject {
    pub(super) labels: Vec<(&'static str, String)>,
    /// Seconds since 1970 when its counters began at zero, where that is not when the agent began.
    pub(super) since: Option<u64>,
}

impl Subject {
    /// One whose counters are as old as the agent, or as what is loaded.
    pub(super) fn of(labels: Vec<(&'static str, String)>) -> Arc<Self> {
        Arc::new(Self { labels, since: None })
    }
}

/// One number: what it is of, labels of its own, the value.
#[derive(Debug)]
pub(super) struct Row(pub(super) Arc<Subject>, pub(super) Vec<(&'static str, &'static str)>, pub(super) u64);

/// All numbers of one name.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    pub(super) rows: Vec<Row>,
}

/// A gauge.
pub(super) fn gauge(name: &'static str, help: &'static str, rows: Vec<Row>) -> Family {
    Family { name, help, kind: MetricType::Gauge, rows }
}

/// A counter; `name` is without `_total`.
pub(super) fn counter(name: &'static str, help: &'static str, rows: Vec<Row>) -> Family {
    Family { name, help, kind: MetricType::Counter, rows }
}

/// A number that is of the agent.
pub(super) fn row<const N: usize>(own: [(&'static str, &'static str); N], value: u64) -> Row {
    Row(Arc::default(), own.to_vec(), value)
}

/// The text of these.
pub(super) fn text(families: Vec<Family>) -> String {
    let since: HashMap<&'static str, Vec<u64>> = families
        .iter()
        .filter(|family| matches!(family.kind, MetricType::Counter))
        .filter_map(|family| {
            let since: Option<Vec<u64>> = family.rows.iter().map(|row| row.0.since).collect();
            Some((family.name, since.filter(|since| !since.is_empty())?))
        })
        .collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Gathered(families)));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    with_beginnings(&text, &since)
}

/// The same text with `_created` behind the numbers of families that are named here: their beginnings in the order of
/// their rows. The library has no way to say it of a counter.
fn with_beginnings(text: &str, since: &HashMap<&'static str, Vec<u64>>) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut current: Option<(&str, std::slice::Iter<'_, u64>)> = None;
    for line in text.split_inclusive('\n') {
        out.push_str(line);
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let name = described.split(' ').next().unwrap_or_default();
            current = since.get_key_value(name).map(|(name, since)| (*name, since.iter()));
        } else if !line.starts_with('#')
            && let Some((name, since)) = &mut current
            && let Some(labels) = line.strip_prefix(*name).and_then(|rest| rest.strip_prefix("_total"))
            && let Some((labels, _)) = labels.rsplit_once(' ')
            && let Some(since) = since.next()
        {
            out.extend([*name, "_created", labels, " ", &since.to_string(), "\n"]);
        }
    }
    out
}

/// One answer to a scrape.
#[derive(Debug)]
struct Gathered(Vec<Family>);

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for Row(subject, own, value) in &family.rows {
                if subject.labels.is_empty() && own.is_empty() {
                    encode(&mut metric, family.kind, *value)?;
                } else {
                    let labels = (subject.labels.as_slice(), own.as_slice());
                    encode(&mut metric.encode_family(&labels)?, family.kind, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => {
            metric.encode_counter::<prometheus_client::encoding::NoLabelSet, u64, u64>(&value, None)
        }
        _ => metric.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_a_pod_says_since_when() {
        let pod = |name: &str, since| {
            Arc::new(Subject { labels: vec![("pod", name.to_owned())], since: Some(since) })
        };
        let odd = "a} 1\" \\\n";
        let rows = vec![Row(pod(odd, 7), Vec::new(), 1), Row(pod("b", 9), vec![("reason", "vlan")], 2)];
        let text = text(vec![
            counter("sent_packets", "Sent", rows),
            counter("sent", "Another", vec![row([], 5)]),
            gauge("pods", "Pods", vec![Row(pod("b", 9), Vec::new(), 3)]),
        ]);
        let odd = r#"{pod="a} 1\" \\\n"}"#;
        let expected = format!(
            "# HELP sent_packets Sent\n# TYPE sent_packets counter\nsent_packets_total{odd} 1\nsent_packets_created{odd} 7\n\
             sent_packets_total{{pod=\"b\",reason=\"vlan\"}} 2\nsent_packets_created{{pod=\"b\",reason=\"vlan\"}} 9\n\
             # HELP sent Another\n# TYPE sent counter\nsent_total 5\n\
             # HELP pods Pods\n# TYPE pods gauge\npods{{pod=\"b\"}} 3\n# EOF\n"
        );
        assert_eq!(text, expected);
    }
}
