//! Events on pods and networks, posted with the plugin's credentials, and never at the price of anything else.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Shared, networks::Lack, notice::Topic};
use crate::{
    cluster::{Api, Subject},
    spec::{Event, PodRef, Severity},
    state::Outline,
};

/// Events that wait; more are lost, and counted.
const WAITING: usize = 200;
/// The time that all that wait have in one pass.
const WITHIN: Duration = Duration::from_secs(5);

/// What waits to be posted.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(Subject, PodRef, Event)>);

impl Shared {
    /// Whether the owner of this use of an id may be told of this now, whoever else tells of what; if so it counts as
    /// told.
    pub(super) fn may_tell(&self, id: (u32, u32), topic: Topic) -> bool {
        let mut notices = self.notices.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        notices.allow(id, topic, self.began.elapsed())
    }

    /// Tells the owner of an attachment's pod.
    pub(super) fn tell_pod(&self, record: &Outline, event: Event) {
        if let Some(pod) = &record.pod {
            self.tell(Subject::Pod, pod.to_ref(), event);
        }
    }

    /// Tells the owner of a network what it lacks.
    pub(super) fn tell_network(&self, network: PodRef, lack: &Lack) {
        let (reason, message) = match lack {
            Lack::Refused(why) => ("NetworkRefused", format!("its last good zone stays in force: {why}")),
            Lack::LeftBehind(why) => ("NetworkMoved", why.clone()),
        };
        let event = Event { severity: Severity::Warning, reason: reason.to_owned(), message };
        self.tell(Subject::Network, network, event);
    }

    /// Tells who looks after the node.
    pub(super) fn tell_node(&self, severity: Severity, reason: &str, message: String) {
        let name = self.options.node.clone();
        // As the kubelet does, whose events of a node `kubectl describe` shows.
        let node = PodRef { namespace: "default".to_owned(), uid: Some(name.clone()), name };
        self.tell(Subject::Node, node, Event { severity, reason: reason.to_owned(), message });
    }

    /// Tells the owner of an object.
    pub(super) fn tell(&self, subject: Subject, object: PodRef, event: Event) {
        let mut waiting = self.waiting();
        if WAITING <= waiting.0.len() {
            self.report().events_lost += 1;
            return;
        }
        waiting.0.push_back((subject, object, event));
    }

    /// Posts what waits. Whoever calls has time.
    pub(super) fn post(&self) {
        let all = std::mem::take(&mut self.waiting().0);
        let Some(kubeconfig) = self.options.plugin_kubeconfig.as_ref().filter(|_| !all.is_empty()) else {
            return;
        };
        let until = Instant::now() + WITHIN;
        let api = Api::new(&self.root, kubeconfig.clone(), until);
        let (mut posted, mut lost) = (0, 0);
        for (subject, object, event) in all {
            let left = until.saturating_duration_since(Instant::now());
            match api.deliver_about(subject, &object, &[event], left) {
                0 => posted += 1,
                _ => lost += 1,
            }
        }
        let mut report = self.report();
        report.events_posted += posted;
        report.events_lost += lost;
    }
}
