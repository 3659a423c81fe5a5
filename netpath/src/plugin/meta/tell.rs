//! What the pod's owner is told, and when: never at the price of the pod.

use std::time::Duration;

use super::Call;
use crate::{
    causes::full,
    flock,
    spec::{Event, PodRef, Severity},
    state::Tally,
};

/// How long a finished ADD may wait for its events to be posted, where no agent does it later.
const EVENTS: Duration = Duration::from_millis(300);

impl Call<'_> {
    /// Tells the pod's owner. That nobody could be told fails nothing.
    pub(super) fn tell(&self, severity: Severity, reason: &str, message: String) {
        match severity {
            Severity::Normal => tracing::info!(reason, "{message}"),
            Severity::Warning => tracing::warn!(reason, "{message}"),
        }
        let (Some(source), Ok(pod), Ok((sandbox, _))) =
            (&self.source, self.pod_or_sandbox(), self.attachment())
        else {
            return;
        };
        let event = Event { severity, reason: reason.to_owned(), message };
        if let Err(error) = source.post(&pod, sandbox, &event) {
            tracing::warn!(error = full(&error), "an event is lost");
        }
    }

    /// Events for the record, where an agent runs that will post them; else they are posted now.
    pub(super) fn leave_events(&self, pod: &PodRef) -> Vec<Event> {
        let events = self.take_events();
        if events.is_empty() || self.has_agent() {
            return events;
        }
        self.deliver(pod, &events);
        Vec::new()
    }

    /// Posts what is left, for there is no record that could keep it.
    pub(super) fn post_events(&self) {
        let events = self.take_events();
        if let (false, Ok(pod)) = (events.is_empty(), self.pod_or_sandbox()) {
            self.deliver(&pod, &events);
        }
    }

    /// What was told to a source that delivers later.
    pub(super) fn take_events(&self) -> Vec<Event> {
        self.source.as_ref().map(|source| source.take_undelivered()).unwrap_or_default()
    }

    fn deliver(&self, pod: &PodRef, events: &[Event]) {
        // Where the runtime names no pod there is none that could be described.
        let lost = match &self.source {
            Some(source) if self.pod().is_some() => source.deliver(pod, events, EVENTS),
            _ => return,
        };
        if lost == 0 {
            return;
        }
        tracing::info!(lost, "events are dropped: they could not be posted in time");
        let lost = u64::try_from(lost).unwrap_or(u64::MAX);
        if let Err(error) = Tally::lost_events(self.root).add(lost) {
            tracing::debug!(error = full(&error), "lost events are not counted");
        }
    }

    fn has_agent(&self) -> bool {
        flock::is_held(&self.root.agent_lock()).unwrap_or_else(|error| {
            tracing::debug!(%error, "whether an agent runs cannot be told");
            false
        })
    }
}
