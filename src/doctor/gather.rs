//! Reads what the checks look at. What cannot be read is noted down with the reason, and the rest is read all the same.

mod cloud;
mod kubernetes;
mod node;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::facts::{Facts, Kubernetes, Seen, Unseen};
use crate::command::deployed;
use crate::command::settings::Place;
use crate::settings::Controller;

pub use node::node;

/// Everything about a cluster and its account.
pub async fn cluster(place: &Place, patience: Duration) -> Facts {
    let (mut kubernetes, client) = Box::pin(kubernetes::begin(place)).await;
    let controller = settings(place, &kubernetes);
    if let Some(client) = client {
        kubernetes::services(&client, &controller, &mut kubernetes).await;
    }
    let cloud = Box::pin(cloud::gather(place, &controller, &kubernetes)).await;
    let now = Timestamp::now().saturating_sub(kubernetes.ahead.unwrap_or(SignedDuration::ZERO));
    let now = now.unwrap_or_else(|_| Timestamp::now());
    Facts { controller, patience, now, kubernetes, cloud }
}

/// The settings to go by.
fn settings(place: &Place, kubernetes: &Kubernetes) -> Seen<Controller> {
    let deployment = kubernetes.deployment.as_ref().ok().and_then(Option::as_ref);
    let deployed = deployment.and_then(|deployment| deployment.settings.as_ref().ok());
    deployed::settings(place, deployed).ok_or_else(|| {
        let why = format!(
            "neither --cluster-name nor a Deployment {}/{} with good flags tells the cluster's name",
            place.namespace,
            deployed::CONTROLLER
        );
        Unseen(why)
    })
}
