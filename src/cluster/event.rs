//! Events whose name is made of what they say: the same words about the same object are one Event whose series grows,
//! also after a restart, and other words are another Event. (kube's `Recorder` tells Events apart by reason alone and
//! would keep the first note.)

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::reason::Reason;

/// Name of this controller in Events.
pub const CONTROLLER: &str = "weir.dev/controller";
/// Longest note (Kubernetes API, `events.k8s.io/v1`).
const NOTE_LIMIT: usize = 1024;

/// How an Event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Publishes Events.
#[derive(Clone)]
pub struct Events {
    client: kube::Client,
    instance: String,
}

impl Events {
    /// A publisher; `instance` tells replicas apart.
    pub const fn new(client: kube::Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Publishes, or adds to the series of the same words.
    ///
    /// # Errors
    /// As of the API server.
    pub async fn publish(&self, about: &ObjectReference, kind: Kind, reason: Reason, note: &str) -> kube::Result<()> {
        // Events about objects without a namespace live in `default`.
        let namespace = about.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = MicroTime(Timestamp::now());
        let note = shorten(note);
        let reason = reason.name();
        let name = event_name(about, reason, note);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(now.clone()),
            action: Some("Reconcile".into()),
            reason: Some(reason.to_owned()),
            note: Some(note.to_owned()),
            type_: Some(match kind {
                Kind::Normal => "Normal".into(),
                Kind::Warning => "Warning".into(),
            }),
            regarding: Some(about.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let known = api.get(&name).await?;
                let count = known.series.map_or(1, |series| series.count) + 1;
                let series = EventSeries { count, last_observed_time: now };
                api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({ "series": series }))).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}

fn event_name(about: &ObjectReference, reason: &str, note: &str) -> String {
    let mut digest = Sha256::new();
    for part in [about.uid.as_deref().unwrap_or_default(), reason, note] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let digest = digest.finalize();
    let hash = u64::from_be_bytes(std::array::from_fn(|index| digest[index]));
    // A name has 253 characters at most, and a Service's or Node's may have all of them.
    let object: String = about.name.as_deref().unwrap_or_default().chars().take(200).collect();
    format!("{}.{hash:016x}", object.trim_end_matches(['.', '-']))
}

/// The note up to its limit, in bytes, without cutting a character.
fn shorten(note: &str) -> &str {
    let end = (0..=NOTE_LIMIT.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
    &note[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_at_a_character() {
        assert_eq!(shorten("short"), "short");
        let long = "ü".repeat(600);
        assert_eq!(shorten(&long).len(), 1024);
        let odd = format!("x{long}");
        assert_eq!(shorten(&odd).len(), 1023);
    }

    #[test]
    fn the_same_words_have_the_same_name_and_others_do_not() {
        let about = ObjectReference { name: Some("order".into()), uid: Some("u".into()), ..ObjectReference::default() };
        assert_eq!(event_name(&about, "A", "b"), event_name(&about, "A", "b"));
        assert_ne!(event_name(&about, "A", "b"), event_name(&about, "A", "c"));
        assert_ne!(event_name(&about, "Ab", ""), event_name(&about, "A", "b"));
    }
}
