//! `weir status`: reads, draws, and with `--watch` does so again and again.

use std::io::IsTerminal as _;

use anyhow::anyhow;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};

use super::settings::{Output, Status};
use super::{answer, deployed};
use crate::aws::Aws;
use crate::cluster::connect;
use crate::cluster::lease::Claim;
use crate::cluster::node::{is_region_in_environment, region_of};
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
    let client = connect().await?;
    let controller = deployed::known(&client, &settings.place).await?;
    // No write could leave.
    let aws = Aws::connect(region(&client, &controller).await, &Metrics::default(), &Claim::none()).await?;
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
    if controller.region.is_some() || is_region_in_environment() {
        return controller.region.clone();
    }
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default().limit(1)).await.ok()?;
    region_of(&nodes.items)
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
