//! What was read of a cluster and its account, in a file: enough to plan again without any network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use serde::{Deserialize, Serialize};

use crate::cluster::node::read_workers;
use crate::controller::account::State;
use crate::controller::desired::Policy;
use crate::controller::facts::Facts;
use crate::controller::observed::Observed;
use crate::controller::placement::Targets;
use crate::model::id::{AsgName, InstanceId, TargetGroupArn};

/// Layout of the file. What is of another one is not read.
const LAYOUT: u32 = 1;

/// A cluster, its account and the controller's settings at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whether it is from a file.
    #[serde(skip)]
    pub is_stored: bool,
    /// When.
    pub taken: String,
    /// The Region.
    pub region: String,
    /// The operator's decisions.
    pub policy: Policy,
    /// The load balancer class that is served.
    pub class: String,
    /// Whether Services without a class are served too.
    pub claim_classless: bool,
    /// What AWS has.
    pub observed: Observed,
    /// The network, if it could be read.
    pub facts: Option<Facts>,
    /// Why it could not.
    pub network_problem: Option<String>,
    /// Auto Scaling groups of instances.
    pub membership: BTreeMap<InstanceId, Option<AsgName>>,
    /// Targets of each target group.
    pub targets: BTreeMap<TargetGroupArn, Targets>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// All Services.
    pub services: Vec<Service>,
    /// What could not be read, in sentences.
    pub unread: BTreeSet<String>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Stored<T> {
    layout: u32,
    /// The version of weir that wrote it.
    weir: String,
    snapshot: T,
}

impl Snapshot {
    /// Of this view; `services` and `nodes` are what it was read for.
    pub fn of(state: &State, settings: Settings, nodes: Vec<Node>, services: Vec<Service>) -> Self {
        let Settings { region, policy, class, claim_classless, now } = settings;
        let mut services = services;
        services.iter_mut().for_each(trim_service);
        Self {
            is_stored: false,
            taken: now.to_string(),
            region,
            policy,
            class,
            claim_classless,
            observed: state.observed.clone(),
            facts: state.facts.clone(),
            network_problem: state.network_problem.clone(),
            membership: state.membership.clone(),
            targets: state.targets.clone(),
            nodes,
            services,
            unread: BTreeSet::new(),
        }
    }

    /// The view that it was taken of.
    pub fn state(&self) -> State {
        let mut state = State::default();
        state.observed = self.observed.clone();
        state.facts.clone_from(&self.facts);
        state.network_problem.clone_from(&self.network_problem);
        state.membership = self.membership.clone();
        state.targets = self.targets.clone();
        state.workers = read_workers(&self.nodes);
        state
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// As of the file.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let stored = Stored { layout: LAYOUT, weir: env!("CARGO_PKG_VERSION").to_owned(), snapshot: self };
        let text = serde_json::to_string_pretty(&stored)?;
        fs::write(path, text + "\n").with_context(|| format!("--save-snapshot: cannot write {}", path.display()))
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// It cannot be read, or is no snapshot of this version of weir.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("--snapshot: cannot read {name}"))?;
        let stored: Stored<serde_json::Value> =
            serde_json::from_str(&text).with_context(|| format!("--snapshot: {name} is no snapshot of weir plan"))?;
        let advice = "take it again with --save-snapshot and the same weir";
        if stored.layout != LAYOUT {
            let (layout, weir) = (stored.layout, stored.weir);
            bail!("--snapshot: {name} was written by weir {weir} in layout {layout}, expected {LAYOUT}; {advice}");
        }
        let snapshot: Self = serde_json::from_value(stored.snapshot)
            .with_context(|| format!("--snapshot: {name} was written by weir {}; {advice}", stored.weir))?;
        Ok(Self { is_stored: true, ..snapshot })
    }
}

/// What a snapshot holds beside the view.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Region.
    pub region: String,
    /// The operator's decisions.
    pub policy: Policy,
    /// The load balancer class that is served.
    pub class: String,
    /// Whether Services without a class are served too.
    pub claim_classless: bool,
    /// The time.
    pub now: Timestamp,
}

/// Leaves of a Service what plans need of it.
fn trim_service(service: &mut Service) {
    service.metadata.managed_fields = None;
    service.metadata.resource_version = None;
    if let Some(annotations) = &mut service.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    service.status = None;
    if let Some(spec) = &mut service.spec {
        spec.selector = None;
        (spec.cluster_ip, spec.cluster_ips, spec.external_name) = (None, None, None);
    }
}
