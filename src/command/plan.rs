//! `weir plan`: what the controller would do, and why.
//!
//! ```text
//! cluster, account ─observe─┐
//! files ─admit──────────────┼─► cast ─► wishes ─rehearse─► parts ─► report ─► text, JSON, exit code
//! snapshot ─────────────────┘
//! ```
//!
//! All Services of the cluster take part, since they share an account; those that are asked for are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::ResourceExt;
use serde::Serialize;
use tokio::time::Instant;

use super::deployed;
use super::manifest::{self, Admission, Admitted, Manifest, admit};
use super::observation::{Reading, find_out, list_nodes, list_services, observe, read_closely};
use super::report::{Line, lines, write_line, write_lines, writes};
use super::settings::{self, Output};
use super::snapshot::{self, Snapshot};
use crate::aws::classify::AwsError;
use crate::cluster::lease::Claim;
use crate::cluster::{cluster_uid, connect};
use crate::controller::account::Account;
use crate::controller::desired::Refusal;
use crate::controller::drift::{learn_named, read_network};
use crate::controller::facts::Asked;
use crate::controller::plan::Step;
use crate::controller::reconcile::unprotects;
use crate::controller::rehearsal::{Act, Fate, Part, Rehearsal, Script, Wish, rehearse};
use crate::model::annotation::Annotations;
use crate::model::id::ServiceKey;
use crate::model::name;
use crate::model::ownership::Owner;
use crate::model::service::{FINALIZER, ServiceSpec, is_claimed, node_labels_of, owner_of, parse};
use crate::settings::Controller;
use crate::telemetry;

/// Readings of what a rehearsal asks for, at most. A node found in a group that joined meanwhile takes two.
const READINGS: usize = 3;
/// Exit code where there is something to do.
const PENDING: u8 = 2;

/// Plans and prints.
///
/// # Errors
/// What could not be read.
pub async fn run(settings: settings::Plan) -> anyhow::Result<ExitCode> {
    telemetry::start(&settings::log(&settings.log))?;
    // A mistake in a file shall not cost a reading of the account.
    let manifests = manifest::read(&settings.files, &settings.default_namespace)?;
    let scope = Scope::of(&settings, &manifests);
    let snapshot = match &settings.snapshot {
        Some(path) => {
            let snapshot = Snapshot::load(path)?;
            agree(&settings, &snapshot)?;
            snapshot
        }
        None => take_snapshot(&settings, &manifests, &scope).await?,
    };
    if let Some(path) = &settings.save_snapshot {
        snapshot.save(path)?;
    }
    let cast = cast(&snapshot, &manifests, Timestamp::now());
    let rehearsal = rehearse_all(&snapshot, &cast);
    let report = Report::of(&snapshot, &cast, &rehearsal, &scope);
    scope.check(&report)?;
    super::answer(&match settings.output {
        Output::Text => report.text(&scope),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    })?;
    Ok(report.exit_code())
}

/// Which Services are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// All that weir serves, and what is left of those that are gone.
    All,
    /// These.
    Named(BTreeSet<ServiceKey>),
    /// Those of files.
    Files(BTreeSet<ServiceKey>),
}

impl Scope {
    fn of(settings: &settings::Plan, manifests: &[Manifest]) -> Self {
        if !settings.files.is_empty() {
            Self::Files(manifests.iter().map(Manifest::key).collect())
        } else if settings.services.is_empty() {
            Self::All
        } else {
            Self::Named(settings.services.iter().cloned().collect())
        }
    }

    fn has(&self, service: &ServiceKey) -> bool {
        match self {
            Self::All => true,
            Self::Named(keys) | Self::Files(keys) => keys.contains(service),
        }
    }

    /// Whoever names a Service that nobody knows has made a typing mistake.
    fn check(&self, report: &Report) -> anyhow::Result<()> {
        let Self::Named(keys) = self else { return Ok(()) };
        let shown: BTreeSet<_> = report.services.iter().map(|line| line.service.as_str()).collect();
        match keys.iter().map(ToString::to_string).find(|key| !shown.contains(key.as_str())) {
            Some(key) => bail!("Service {key} is neither in the cluster nor has it anything in AWS"),
            None => Ok(()),
        }
    }
}

/// Reads cluster and account. Nothing is written: this process leads nobody, and no write leaves without a claim.
async fn take_snapshot(settings: &settings::Plan, manifests: &[Manifest], scope: &Scope) -> anyhow::Result<Snapshot> {
    let client = connect().await?;
    let controller = settings.overrides.over(deployed::known(&client, &settings.place).await?);
    let nodes = list_nodes(&client).await?;
    let policy = controller.policy(cluster_uid(&client).await?);
    let reading = Reading { region: controller.region.as_deref(), vpc: controller.vpc(), policy, nodes: &nodes };
    let account = observe(reading, Claim::none()).await?;
    read_network(&account).await;
    // After AWS: what is seen there then belongs to a Service that is seen here, or to one that is gone.
    let services = list_services(&client).await?;
    let shown: BTreeSet<_> = services.iter().map(owner_of).filter(|owner| scope.has(&owner.service)).collect();
    let shown: BTreeSet<_> = shown.into_iter().map(|owner| owner.uid).collect();
    let mut errors = read_closely(&account, |uid| settings.save_snapshot.is_some() || shown.contains(uid)).await;
    let mut snapshot = snapshot_of(&account, &controller, &nodes, &services);
    for entry in cast(&snapshot, manifests, Timestamp::now()) {
        if let Some(Wish::Serve(spec)) = &entry.wish {
            errors.extend(learn_named(&account, spec).await.err());
        }
    }
    snapshot = snapshot_of(&account, &controller, &nodes, &services);
    for _ in 0..READINGS {
        let rehearsal = rehearse_all(&snapshot, &cast(&snapshot, manifests, Timestamp::now()));
        if rehearsal.unread.is_empty() && rehearsal.unresolved.is_empty() {
            break;
        }
        errors.extend(find_out(&account, &rehearsal).await);
        snapshot = snapshot_of(&account, &controller, &nodes, &services);
    }
    snapshot.unread = errors.iter().map(AwsError::to_string).collect();
    Ok(snapshot)
}

/// A snapshot holds the settings: whoever gives others would get an answer to another question.
fn agree(settings: &settings::Plan, snapshot: &Snapshot) -> anyhow::Result<()> {
    let settings::Plan { place, overrides, .. } = settings;
    let policy = &snapshot.policy;
    let range = |(from, to): (u16, u16)| format!("{from}-{to}");
    let vpc = snapshot.facts.as_ref().map(|facts| facts.vpc.to_string());
    let flags = [
        ("--cluster-name", place.cluster_name.clone(), policy.cluster.clone()),
        ("--region", place.region.clone(), snapshot.region.clone()),
        ("--vpc-id", overrides.vpc_id.clone(), vpc.unwrap_or_else(|| "none".to_owned())),
        ("--load-balancer-class", overrides.load_balancer_class.clone(), snapshot.class.clone()),
        ("--claim-classless", overrides.claim_classless.then(|| "true".into()), snapshot.claim_classless.to_string()),
        ("--default-scheme", overrides.default_scheme.map(|it| it.to_string()), policy.default_scheme.to_string()),
        ("--node-port-range", overrides.node_port_range.map(range), range(policy.node_ports)),
        ("--health-port", overrides.health_port.map(|it| it.to_string()), policy.health_port.to_string()),
    ];
    for (flag, given, stored) in flags {
        if let Some(given) = given.filter(|given| *given != stored) {
            bail!(
                "{flag}: {given}, but the snapshot holds {stored}; leave it out, or take another with --save-snapshot"
            );
        }
    }
    Ok(())
}

fn snapshot_of(account: &Account, controller: &Controller, nodes: &[Node], services: &[Service]) -> Snapshot {
    let stored = snapshot::Settings {
        region: account.aws.region().to_owned(),
        policy: account.policy.clone(),
        class: controller.load_balancer_class.clone(),
        claim_classless: controller.claim_classless,
        now: Timestamp::now(),
    };
    Snapshot::of(&account.state(), stored, nodes.to_vec(), services.to_vec())
}

/// A Service, and what is to become of it.
#[derive(Clone, Debug)]
struct Entry {
    owner: Owner,
    admitted: Admitted,
    source: Option<String>,
    wish: Option<Wish>,
    /// Why that is so, where it needs a word.
    because: Option<String>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// All Services of the snapshot, those of files in their place, and those that are gone and left something. Oldest
/// first, as the controller gives out slots.
fn cast(snapshot: &Snapshot, manifests: &[Manifest], now: Timestamp) -> Vec<Entry> {
    let existing: BTreeMap<_, _> =
        snapshot.services.iter().map(|service| (owner_of(service).service, service)).collect();
    let cluster = existing.get(&ServiceKey::new("default", "kubernetes")).and_then(|service| service.spec.as_ref());
    let family = cluster.and_then(|spec| spec.ip_families.as_ref()?.first()).map(String::as_str);
    let in_files: BTreeSet<_> = manifests.iter().map(Manifest::key).collect();
    let others = existing.iter().filter(|(key, _)| !in_files.contains(*key));
    let mut entries: Vec<_> =
        others.map(|(_, service)| entry(snapshot, Admitted::known((*service).clone()), None)).collect();
    for manifest in manifests {
        let existing = existing.get(&manifest.key()).copied();
        let sets_class = !snapshot.claim_classless;
        let admitted = admit(manifest, &Admission { existing, family, sets_class, now });
        entries.push(entry(snapshot, admitted, Some(manifest.source.clone())));
    }
    let uids: BTreeSet<_> = snapshot.services.iter().filter_map(ResourceExt::uid).collect();
    let owners = snapshot.observed.owners(&snapshot.policy.cluster);
    for owner in owners.into_iter().filter(|owner| !uids.contains(&owner.uid)) {
        entries.push(Entry {
            wish: Some(Wish::Release { owner: owner.clone(), unprotect: false }),
            owner,
            admitted: Admitted::known(Service::default()),
            source: None,
            because: Some("the Service is gone".to_owned()),
            problems: vec![],
            warnings: vec![],
        });
    }
    entries.sort_by_key(|entry| {
        let created = entry.admitted.service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, entry.owner.clone())
    });
    entries
}

/// What the controller would want of a Service.
fn entry(snapshot: &Snapshot, admitted: Admitted, source: Option<String>) -> Entry {
    let service = &admitted.service;
    let owner = owner_of(service);
    let leaves = service.metadata.deletion_timestamp.is_some();
    let claimed = is_claimed(service, &snapshot.class, snapshot.claim_classless);
    let has_finalizer = service.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let owns = !snapshot.observed.of(&snapshot.policy.cluster, &owner.uid).is_empty();
    let (mut because, mut problems, mut warnings) = (None, vec![], vec![]);
    let wish = if claimed && !leaves {
        let none = BTreeMap::new();
        warnings = Annotations(service.metadata.annotations.as_ref().unwrap_or(&none)).warnings();
        match parse(service) {
            Ok(spec) => {
                warnings.extend(spec.warnings.clone());
                warnings.extend(not_stored(snapshot, &spec));
                Some(Wish::Serve(Box::new(spec)))
            }
            Err(wrong) => {
                problems = wrong.iter().map(ToString::to_string).collect();
                Some(Wish::Keep(owner.clone(), node_labels_of(service)))
            }
        }
    } else {
        because = Some(if leaves { "the Service is being deleted".to_owned() } else { not_ours(service, snapshot) });
        (has_finalizer || owns).then(|| Wish::Release { owner: owner.clone(), unprotect: unprotects(service) })
    };
    Entry { owner, admitted, source, wish, because, problems, warnings }
}

/// A snapshot knows the security groups and prefix lists that Services named when it was taken.
fn not_stored(snapshot: &Snapshot, spec: &ServiceSpec) -> Option<String> {
    let Asked { groups, prefix_lists } = snapshot.facts.as_ref()?.lacks(spec);
    let names: Vec<_> = groups.into_iter().chain(prefix_lists).collect();
    let tells = snapshot.is_stored && !names.is_empty();
    tells.then(|| format!("not in the snapshot, so that it counts as missing: {}", names.join(", ")))
}

fn not_ours(service: &Service, snapshot: &Snapshot) -> String {
    let spec = service.spec.clone().unwrap_or_default();
    match (spec.type_.as_deref(), spec.load_balancer_class.as_deref()) {
        (Some("LoadBalancer"), Some(class)) => {
            format!("weir does not serve it: spec.loadBalancerClass is {class}, not {}", snapshot.class)
        }
        (Some("LoadBalancer"), None) => "weir does not serve it: it has no spec.loadBalancerClass".to_owned(),
        (other, _) => format!("weir does not serve it: spec.type is {}", other.unwrap_or("ClusterIP")),
    }
}

fn rehearse_all(snapshot: &Snapshot, cast: &[Entry]) -> Rehearsal {
    let wishes: Vec<_> = cast.iter().filter_map(|entry| entry.wish.clone()).collect();
    let needs_shared = wishes.iter().any(|wish| !matches!(wish, Wish::Release { .. }));
    let script = Script { policy: &snapshot.policy, wishes: &wishes, needs_shared, now: Instant::now() };
    rehearse(&mut snapshot.state(), &script)
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report {
    cluster: String,
    region: String,
    /// When cluster and account were read.
    taken: String,
    #[serde(skip)]
    is_stored: bool,
    services: Vec<Entryline>,
    /// What is done for all Services together.
    shared: Vec<Line>,
    /// What could not be read, and is left alone.
    unread: BTreeSet<String>,
    /// Sentences about the cluster.
    notes: Vec<String>,
    /// Whether what is shown comes to an end.
    #[serde(skip)]
    is_settled: bool,
    /// How many Services have which fate.
    summary: BTreeMap<Fate, usize>,
}

/// One Service's part of the answer.
#[derive(Debug, Serialize)]
struct Entryline {
    service: String,
    action: Fate,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
    /// What is not known of a Service in a file.
    assumed: Vec<String>,
    steps: Vec<Line>,
    /// Why it is refused.
    problems: Vec<String>,
    /// What has no effect, and what its owner should know.
    notes: Vec<String>,
}

impl Report {
    fn of(snapshot: &Snapshot, cast: &[Entry], rehearsal: &Rehearsal, scope: &Scope) -> Self {
        let mut parts = rehearsal.parts.iter();
        let mut services = vec![];
        for entry in cast {
            let part = entry.wish.as_ref().and_then(|_| parts.next());
            // Nobody asked for the many Services that are no load balancers.
            if scope.has(&entry.owner.service) && (part.is_some() || *scope != Scope::All) {
                services.push(Entryline::of(entry, part, &snapshot.policy.cluster));
            }
        }
        services.sort_by(|one, other| one.service.cmp(&other.service));
        let mut summary = BTreeMap::new();
        for line in &services {
            *summary.entry(line.action).or_default() += 1;
        }
        let mut notes: Vec<_> =
            snapshot.facts.iter().flat_map(|facts| facts.node_groups.warnings.iter().cloned()).collect();
        let twins = snapshot.observed.twins.len();
        if twins > 0 {
            let cluster = &snapshot.policy.cluster;
            notes.push(format!("another cluster is called {cluster}: what it owns ({twins} resources) is left alone"));
        }
        if matches!(scope, Scope::Files(keys) if keys.is_empty()) {
            notes.push("no Service is in what --filename names".to_owned());
        }
        if !rehearsal.settled {
            notes.push("the plan has no end: what is shown repeats itself, which is a mistake in weir".to_owned());
        }
        Self {
            cluster: snapshot.policy.cluster.clone(),
            region: snapshot.region.clone(),
            taken: snapshot.taken.clone(),
            is_stored: snapshot.is_stored,
            services,
            shared: lines(&rehearsal.shared),
            unread: unread(rehearsal).chain(snapshot.unread.iter().cloned()).collect::<BTreeSet<_>>(),
            notes,
            is_settled: rehearsal.settled,
            summary,
        }
    }

    fn exit_code(&self) -> ExitCode {
        let is = |fate: Fate| self.summary.contains_key(&fate);
        if is(Fate::Refused) || !self.unread.is_empty() || !self.is_settled {
            ExitCode::FAILURE
        } else if writes(&self.shared) || self.services.iter().any(|line| writes(&line.steps)) {
            ExitCode::from(PENDING)
        } else {
            ExitCode::SUCCESS
        }
    }

    fn text(&self, scope: &Scope) -> String {
        let mut text = String::new();
        let read = if self.is_stored { "as stored at" } else { "read at" };
        // Writing into a String does not fail.
        let _ = writeln!(text, "cluster {} in {}, {read} {}", self.cluster, self.region, self.taken);
        let is_quiet = |line: &Entryline| line.action == Fate::None && line.notes.is_empty();
        for line in self.services.iter().filter(|line| *scope != Scope::All || !is_quiet(line)) {
            line.write(&mut text);
        }
        if !self.shared.is_empty() {
            let _ = writeln!(text, "\nfor all Services together");
            write_lines(&mut text, &self.shared);
        }
        if !self.unread.is_empty() || !self.notes.is_empty() {
            text.push('\n');
            self.unread.iter().for_each(|sentence| write_line(&mut text, '!', &format!("not read: {sentence}")));
            self.notes.iter().for_each(|sentence| write_line(&mut text, '!', sentence));
        }
        let counts = self.summary.iter().map(|(fate, count)| match fate {
            Fate::Create => format!("{count} to create"),
            Fate::Change => format!("{count} to change"),
            Fate::Replace => format!("{count} to replace"),
            Fate::Delete => format!("{count} to delete"),
            Fate::None => format!("{count} with nothing to do"),
            Fate::Refused => format!("{count} refused"),
        });
        let counts: Vec<_> = counts.collect();
        let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let _ = writeln!(text, "\nServices: {counts}");
        text
    }
}

/// Target groups and nodes without which something could not be decided.
fn unread(rehearsal: &Rehearsal) -> impl Iterator<Item = String> {
    let groups = rehearsal.unread.iter().map(|arn| format!("the targets of target group {arn}"));
    let instances = rehearsal.unresolved.iter().map(|id| format!("the Auto Scaling group of instance {id}"));
    groups.chain(instances)
}

impl Entryline {
    fn of(entry: &Entry, part: Option<&Part>, cluster: &str) -> Self {
        let none = Part::default();
        let part = part.unwrap_or(&none);
        let names = uncertain_names(&part.acts, &entry.admitted, cluster);
        let shown = |text: &str| entry.admitted.unveil(text, &names);
        let mut problems = entry.problems.clone();
        match &part.refusal {
            Some(Refusal::Service(wrong)) => problems.extend(wrong.iter().map(ToString::to_string)),
            Some(Refusal::Network(sentence)) => problems.push(sentence.clone()),
            None => {}
        }
        let action = if problems.is_empty() { part.fate() } else { Fate::Refused };
        let mut notes = entry.warnings.clone();
        notes.extend(part.notes.iter().map(|note| shown(&note.to_string())));
        if action == Fate::Replace {
            notes.push("the hostname in its status changes to that of the new load balancer".to_owned());
        }
        Self {
            service: entry.owner.service.to_string(),
            action,
            file: entry.source.clone(),
            because: entry.because.clone(),
            assumed: entry.admitted.assumed.clone(),
            steps: part.acts.iter().map(|act| Line::of(act, shown)).collect(),
            problems: problems.iter().map(|problem| shown(problem)).collect(),
            notes,
        }
    }

    fn write(&self, text: &mut String) {
        let action = match self.action {
            Fate::Create => "create",
            Fate::Change => "change",
            Fate::Replace => "replace",
            Fate::Delete => "delete",
            Fate::None => "nothing to do",
            Fate::Refused => "refused",
        };
        let file = self.file.as_ref().map(|file| format!(", from {file}")).unwrap_or_default();
        let because = self.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
        // Writing into a String does not fail.
        let _ = writeln!(text, "\n{}: {action}{because}{file}", self.service);
        self.assumed.iter().for_each(|sentence| write_line(text, '?', sentence));
        self.problems.iter().for_each(|sentence| write_line(text, '!', sentence));
        write_lines(text, &self.steps);
        self.notes.iter().for_each(|sentence| write_line(text, '!', sentence));
    }
}

/// Names with a hash of something that the API server has not chosen yet: the UID, or a NodePort.
fn uncertain_names(acts: &[Act], admitted: &Admitted, cluster: &str) -> BTreeSet<String> {
    let is_uncertain = |port: u16| !admitted.exists || admitted.made_up.contains(&port);
    let steps = acts.iter().filter_map(|act| match act {
        Act::Take { step, .. } => Some(&**step),
        _ => None,
    });
    let made = steps.filter_map(|step| match step {
        Step::CreateTargetGroup(group) => is_uncertain(group.port).then(|| group.name.clone()),
        Step::CreateBalancer(balancer) => (!admitted.exists).then(|| balancer.name.clone()),
        Step::CreateGroup { name, .. } => (!admitted.exists).then(|| name.clone()),
        _ => None,
    });
    // A name that the Service gives is certain.
    made.filter(|name| name.starts_with(&name::cluster_prefix(cluster))).collect()
}

#[cfg(test)]
mod tests;
