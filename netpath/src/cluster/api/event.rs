//! Events as `kubectl describe pod` shows them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::spec::{Event, PodRef};

/// Who says it.
const COMPONENT: &str = "netpath";
/// The longest name of an object.
const NAME_LIMIT: usize = 253;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod.
    Pod,
    /// A NetworkAttachmentDefinition.
    Network,
    /// A node, which is of no namespace; events of it are in `default`.
    Node,
}

impl Subject {
    fn api_version(self) -> &'static str {
        match self {
            Self::Pod | Self::Node => "v1",
            Self::Network => "k8s.cni.cncf.io/v1",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Network => "NetworkAttachmentDefinition",
            Self::Node => "Node",
        }
    }
}

/// The object's name: the same for the same thing said of the same pod, so that what a pod is told again and again,
/// by as many processes, is one event with a count.
pub(super) fn name(pod: &PodRef, event: &Event) -> String {
    let mut hash = Sha256::new();
    for part in
        [pod.uid.as_deref().unwrap_or_default(), event.severity.as_str(), &event.reason, &event.message]
    {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let room = NAME_LIMIT - digest.len() - 1;
    format!("{}.{digest}", pod.name.get(..room).unwrap_or(&pod.name).trim_end_matches(['.', '-']))
}

/// The object of an event that happens for the first time.
///
/// `kubectl describe` looks for the pod's UID, and for a static pod, which has two, for that of the runtime.
pub(super) fn object(subject: Subject, pod: &PodRef, event: &Event, host: &str, now: SystemTime) -> Value {
    let now = timestamp(now);
    let namespace = if subject == Subject::Node { "" } else { pod.namespace.as_str() };
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name(pod, event), "namespace": pod.namespace},
        "involvedObject": {"apiVersion": subject.api_version(), "kind": subject.kind(),
                           "namespace": namespace, "name": pod.name,
                           "uid": pod.uid.as_deref().unwrap_or_default()},
        "reason": event.reason,
        "message": event.message,
        "type": event.severity.as_str(),
        "source": {"component": COMPONENT, "host": host},
        "reportingComponent": COMPONENT,
        "reportingInstance": host,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}

/// The patch for one that is there: now again.
pub(super) fn again(now: SystemTime) -> Value {
    json!({"lastTimestamp": timestamp(now)})
}

/// The patch for its count, once the answer to [`again`] says what it was.
pub(super) fn counted(known: &Value) -> Value {
    json!({"count": known["count"].as_u64().unwrap_or(1) + 1})
}

/// RFC 3339 in seconds, as Kubernetes writes times.
fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Year, month and day of a day since 1970, in the Gregorian calendar (after Howard Hinnant: years begin in March).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::Severity;

    fn pod(name: &str) -> PodRef {
        PodRef { namespace: "web".into(), name: name.into(), uid: Some("u1".into()) }
    }

    fn event(message: &str) -> Event {
        Event { severity: Severity::Warning, reason: "NoNetworkFound".into(), message: message.into() }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn one_thing_said_of_one_pod_has_one_name() {
        assert_eq!(name(&pod("p"), &event("m")), name(&pod("p"), &event("m")));
        assert_ne!(name(&pod("p"), &event("m")), name(&pod("p"), &event("n")));
        let other = PodRef { uid: Some("u2".into()), ..pod("p") };
        assert_ne!(name(&pod("p"), &event("m")), name(&other, &event("m")));
        let long = name(&pod(&"a".repeat(253)), &event("m"));
        assert!(long.len() <= NAME_LIMIT && long.contains("a."), "{long}");
    }

    #[test]
    fn counts_go_on_where_they_were() {
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let first = object(Subject::Pod, &pod("p"), &event("m"), "worker01", now);
        assert_eq!(counted(&first), json!({"count": 2}));
        assert_eq!(again(now)["lastTimestamp"], first["firstTimestamp"]);
        assert_eq!(first["involvedObject"]["uid"], "u1");
    }
}
