//! Numbers as OpenMetrics text.
//!
//! Written by hand, since most of a node's numbers are of its pods: their labels are made once and copied, where the library
//! writes each label of each number anew. What it would write is what a test holds this against.

/// Labels as they stand in the text, without the braces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels(Box<str>);

impl Labels {
    pub(super) fn of(labels: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        push_labels(&mut text, labels);
        Self(text.into())
    }
}

fn push_labels(text: &mut String, labels: &[(&str, &str)]) {
    for (name, value) in labels {
        let comma = if text.is_empty() || text.ends_with('{') { "" } else { "," };
        text.extend([comma, name, "=\""]);
        for character in value.chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\\' | '"' => text.extend(['\\', character]),
                plain => text.push(plain),
            }
        }
        text.push('"');
    }
}

/// The text, family by family.
#[derive(Debug)]
pub(super) struct Text(String);

impl Text {
    /// With room for so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// A number that goes up and down.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge", "")
    }

    /// A number that grows; `name` is without `_total`.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter", "_total")
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str, suffix: &'static str) -> Family<'_> {
        self.0.extend(["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"]);
        Family { text: &mut self.0, name, suffix, number: itoa::Buffer::new() }
    }

    /// All of it.
    pub(super) fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// All numbers of one name.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    suffix: &'static str,
    number: itoa::Buffer,
}

impl Family<'_> {
    /// The one that is of the agent, and has no labels.
    pub(super) fn value(&mut self, value: u64) {
        self.row(&Labels::default(), &[], value);
    }

    /// One that is of something, with labels of its own.
    pub(super) fn row(&mut self, labels: &Labels, own: &[(&str, &str)], value: u64) {
        self.line(self.suffix, labels, own, value);
    }

    /// The same of a counter that began at zero at `since`, in seconds since 1970.
    pub(super) fn row_since(&mut self, labels: &Labels, own: &[(&str, &str)], value: u64, since: u64) {
        self.line(self.suffix, labels, own, value);
        self.line("_created", labels, own, since);
    }

    fn line(&mut self, suffix: &str, labels: &Labels, own: &[(&str, &str)], value: u64) {
        let text = &mut *self.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !labels.0.is_empty() || !own.is_empty() {
            text.push('{');
            text.push_str(&labels.0);
            push_labels(text, own);
            text.push('}');
        }
        text.push(' ');
        text.push_str(self.number.format(value));
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        collector::Collector,
        encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
        metrics::MetricType,
        registry::Registry,
    };

    use super::*;

    const POD: &[(&str, &str)] = &[("pod", "a} 1\" \\\n"), ("namespace", "")];
    const OWN: &[(&str, &str)] = &[("reason", "vlan"), ("direction", "tx")];
    const VALUES: [u64; 3] = [0, 7, u64::MAX];

    fn put(metric: &mut MetricEncoder<'_>, kind: MetricType, value: u64) -> std::fmt::Result {
        match kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, u64, u64>(&value, None),
            _ => metric.encode_gauge(&value),
        }
    }

    /// The same numbers by the library.
    #[derive(Debug)]
    struct Oracle;

    impl Collector for Oracle {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
            let both = [POD, OWN].concat();
            let families = [("sent", "Sent", MetricType::Counter), ("pods", "Pods", MetricType::Gauge)];
            for (name, help, kind) in families {
                let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
                for value in VALUES {
                    put(&mut metric, kind, value)?;
                    for labels in [POD, OWN, &both] {
                        put(&mut metric.encode_family(&labels)?, kind, value)?;
                    }
                }
            }
            encoder.encode_descriptor("none", "None", None, MetricType::Gauge).map(drop)
        }
    }

    #[test]
    fn the_text_is_what_the_library_writes() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Oracle));
        let mut expected = String::new();
        encode(&mut expected, &registry).expect("a string takes all");

        let write = |mut family: Family<'_>| {
            for value in VALUES {
                family.value(value);
                family.row(&Labels::of(POD), &[], value);
                family.row(&Labels::default(), OWN, value);
                family.row(&Labels::of(POD), OWN, value);
            }
        };
        let mut text = Text::with_capacity(0);
        write(text.counter("sent", "Sent"));
        write(text.gauge("pods", "Pods"));
        text.gauge("none", "None");
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn what_is_of_a_pod_says_since_when() {
        let (a, b) = (Labels::of(&[("pod", "a")]), Labels::of(&[("pod", "b")]));
        let mut text = Text::with_capacity(0);
        let mut sent = text.counter("sent_packets", "Sent");
        sent.row_since(&a, &[], 1, 7);
        sent.row_since(&b, &[("reason", "vlan")], 2, 9);
        let expected = "# HELP sent_packets Sent\n# TYPE sent_packets counter\n\
             sent_packets_total{pod=\"a\"} 1\nsent_packets_created{pod=\"a\"} 7\n\
             sent_packets_total{pod=\"b\",reason=\"vlan\"} 2\nsent_packets_created{pod=\"b\",reason=\"vlan\"} 9\n# EOF\n";
        assert_eq!(text.finish(), expected);
    }
}
