//! `weir status`: reads, draws, and with `--watch` does so again and again.

use std::io::IsTerminal as _;

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;

use super::settings::{Output, Status};
use super::{answer, deployed};
use crate::aws::{self, Aws};
use crate::cluster::lease::Claim;
use crate::metrics::Metrics;
use crate::settings::Controller;
use crate::status::read::Reader;
use crate::status::text::text;
use crate::status::tree::{Tree, trees};

/// Clears a terminal, and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Shows Services.
///
/// # Errors
/// What could not be read.
pub async fn run(settings: Status) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("cannot find the cluster: set KUBECONFIG, or run in a pod")?;
    let controller = deployed::known(&client, &settings.place).await?;
    let config = aws::configuration(region(&client, &controller).await).await?;
    if config.region().is_none() {
        bail!("cannot find the AWS Region: set --region or AWS_REGION");
    }
    // A claim that never holds: no write could leave.
    let aws = Aws::new(&config, &Metrics::default(), &Claim::following(watch::channel(None).1));
    let mut reader = Reader::new(client, aws, controller, settings.services.clone());
    let mut shown = None;
    let mut is_read = true;
    loop {
        let seen = reader.look().await.map_err(|error| anyhow!("{error:#}; `weir doctor` may tell more"))?;
        let trees = trees(&seen);
        if shown.as_ref() != Some(&trees) {
            is_read = answer(&answer_of(&trees, &settings)?)?;
        }
        if !settings.watch || !is_read {
            return Ok(());
        }
        shown = Some(trees);
        tokio::time::sleep(settings.interval).await;
    }
}

/// The Region to ask for; `None` leaves it to the environment.
async fn region(client: &Client, controller: &Controller) -> Option<String> {
    let from_environment = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some());
    if controller.region.is_some() || from_environment {
        return controller.region.clone();
    }
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default().limit(1)).await.ok()?;
    nodes.iter().find_map(|node| node.labels().get("topology.kubernetes.io/region").cloned())
}

fn answer_of(trees: &[Tree], settings: &Status) -> serde_json::Result<String> {
    Ok(match settings.output {
        // One line for each look, for programs that read them as they come.
        Output::Json if settings.watch => serde_json::to_string(&Services { services: trees })? + "\n",
        Output::Json => serde_json::to_string_pretty(&Services { services: trees })? + "\n",
        Output::Text if settings.watch => {
            let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
            format!("{clear}{:.0}\n\n{}", Timestamp::now(), text(trees))
        }
        Output::Text => text(trees),
    })
}

#[derive(serde::Serialize)]
struct Services<'a> {
    services: &'a [Tree],
}
