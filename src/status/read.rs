//! Reads what `weir status` shows: batched where AWS lets us, and a call for each load balancer's listeners and each
//! target group's health. What does not change is remembered from one look to the next.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Service as KubeService};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::tree::{Seen, Service};
use crate::aws::Aws;
use crate::aws::classify::{AwsError, Class};
use crate::cluster::event::CONTROLLER as REPORTER;
use crate::cluster::node::read_workers;
use crate::command::observation::{list_nodes, list_services};
use crate::controller::observed::Observed;
use crate::model::id::{ListenerArn, LoadBalancerArn, ServiceKey};
use crate::model::name;
use crate::model::ownership::{self, Tags};
use crate::model::service::{FINALIZER, is_claimed, node_labels_of, owner_of, parse};
use crate::settings::Controller;
use crate::telemetry::chain;

/// Calls under way at once; weir's own bucket spreads them over time.
const AT_ONCE: usize = 8;
/// Listeners in one call.
const LISTENERS_PER_CALL: usize = 20;

/// Reason, words, and whether it is a warning; by UID, oldest first.
type Told = BTreeMap<String, Vec<(String, String, bool)>>;

/// Looks again and again.
pub struct Reader {
    client: Client,
    aws: Aws,
    controller: Controller,
    wanted: Vec<ServiceKey>,
    /// Tags of what has been seen: what is made keeps them.
    tags: BTreeMap<String, Tags>,
    /// Listeners that have been seen, by their load balancer.
    listeners: BTreeMap<LoadBalancerArn, BTreeSet<ListenerArn>>,
}

impl Reader {
    /// Of these Services; without any, of all that are weir's.
    pub const fn new(client: Client, aws: Aws, controller: Controller, wanted: Vec<ServiceKey>) -> Self {
        Self { client, aws, controller, wanted, tags: BTreeMap::new(), listeners: BTreeMap::new() }
    }

    /// One look.
    ///
    /// # Errors
    /// What could not be read, or a Service that does not exist.
    pub async fn look(&mut self) -> anyhow::Result<Seen> {
        let workers = read_workers(&list_nodes(&self.client).await?).into_values().collect();
        let services = self.services().await?;
        let uids: BTreeSet<_> = services.iter().map(|service| service.uid.clone()).collect();
        let observed = self.observe(&uids).await?;
        let groups = observed.target_groups.values().map(|group| group.arn.clone());
        let asked = futures::stream::iter(groups).map(|arn| {
            let aws = &self.aws;
            async move {
                let health = unless_gone(aws.describe_health(&arn).await)?;
                Ok::<_, AwsError>((arn, health.unwrap_or_default()))
            }
        });
        let health = asked.buffered(AT_ONCE).try_collect().await?;
        Ok(Seen {
            cluster: self.controller.cluster_name.clone(),
            class: self.controller.load_balancer_class.clone(),
            services,
            workers,
            observed,
            health,
        })
    }

    async fn services(&self) -> anyhow::Result<Vec<Service>> {
        let all = list_services(&self.client).await?;
        let is_shown = |service: &&KubeService| {
            if self.wanted.is_empty() {
                self.is_ours(service) || service.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
            } else {
                self.wanted.contains(&owner_of(service).service)
            }
        };
        let shown: Vec<_> = all.iter().filter(is_shown).collect();
        if let Some(absent) =
            self.wanted.iter().find(|key| !shown.iter().any(|service| owner_of(service).service == **key))
        {
            bail!("there is no Service {absent}");
        }
        let events = self.events().await;
        Ok(shown.into_iter().map(|service| self.service(service, &events)).collect())
    }

    /// What the controller said, by UID, oldest first.
    ///
    /// # Errors
    /// Why it cannot be read. Then there is less to show.
    async fn events(&self) -> Result<Told, String> {
        let said = ListParams::default().fields(&format!("reportingController={REPORTER}"));
        let events = Api::<Event>::all(self.client.clone()).list(&said).await;
        let mut events = events.map_err(|error| format!("cannot list Events: {}", chain(&error)))?.items;
        let time = |event: &Event| {
            let series = event.series.as_ref().map(|series| series.last_observed_time.0);
            series.or_else(|| event.event_time.as_ref().map(|time| time.0))
        };
        events.sort_by_key(time);
        let mut told = Told::new();
        for event in events {
            let Some(uid) = event.regarding.and_then(|about| about.uid) else { continue };
            let is_warning = event.type_.as_deref() == Some("Warning");
            let words = (event.reason.unwrap_or_default(), event.note.unwrap_or_default(), is_warning);
            told.entry(uid).or_default().push(words);
        }
        Ok(told)
    }

    fn is_ours(&self, service: &KubeService) -> bool {
        is_claimed(service, &self.controller.load_balancer_class, self.controller.claim_classless)
    }

    fn service(&self, service: &KubeService, events: &Result<Told, String>) -> Service {
        let owner = owner_of(service);
        let spec = service.spec.clone().unwrap_or_default();
        let is_ours = self.is_ours(service);
        let problems = parse(service).err().unwrap_or_default();
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()?.first());
        Service {
            name: owner.service.to_string(),
            told: events.as_ref().map(|told| told.get(&owner.uid).cloned().unwrap_or_default()).map_err(Clone::clone),
            uid: owner.uid,
            is_ours,
            kind: spec.type_.unwrap_or_default(),
            class: spec.load_balancer_class,
            hostname: ingress.and_then(|ingress| ingress.hostname.clone()),
            is_leaving: service.metadata.deletion_timestamp.is_some(),
            problems: problems.iter().filter(|_| is_ours).map(ToString::to_string).collect(),
            // What runs stays as it was, also while the Service is refused for something else.
            node_labels: node_labels_of(service).unwrap_or_default(),
        }
    }

    /// What AWS has of Services with these UIDs.
    async fn observe(&mut self, uids: &BTreeSet<String>) -> anyhow::Result<Observed> {
        let cluster = self.controller.cluster_name.clone();
        let (balancers, target_groups, asgs) = tokio::try_join!(
            self.aws.describe_balancers(),
            self.aws.describe_target_groups(),
            self.aws.describe_asgs()
        )?;
        let prefix = name::cluster_prefix(&cluster);
        let target_groups: Vec<_> = target_groups.into_iter().filter(|group| group.name.starts_with(&prefix)).collect();
        let arns = balancers.0.iter().map(|balancer| balancer.arn.to_string());
        self.learn_tags(arns.chain(target_groups.iter().map(|group| group.arn.to_string())).collect()).await?;

        let uid = cluster_uid(&self.client).await;
        let is_theirs = |tags: &Tags| {
            let is_twin = uid.as_ref().is_some_and(|uid| ownership::is_of_other_uid(uid, tags));
            !is_twin && ownership::owner(&cluster, tags).is_some_and(|owner| uids.contains(&owner.uid))
        };
        let mut observed = Observed { asgs, ..Observed::default() };
        for mut balancer in balancers.0 {
            balancer.tags = self.tags.get(balancer.arn.as_str()).cloned().unwrap_or_default();
            if is_theirs(&balancer.tags) {
                observed.balancers.insert(balancer.name.clone(), balancer);
            }
        }
        for mut group in target_groups {
            group.tags = self.tags.get(group.arn.as_str()).cloned().unwrap_or_default();
            if is_theirs(&group.tags) {
                observed.target_groups.insert(group.name.clone(), group);
            }
        }
        self.read_listeners(&mut observed).await?;
        self.read_attachments(&mut observed).await?;
        Ok(observed)
    }

    /// Tags of what has not been seen before.
    async fn learn_tags(&mut self, arns: Vec<String>) -> Result<(), AwsError> {
        let new: Vec<_> = arns.iter().filter(|arn| !self.tags.contains_key(*arn)).cloned().collect();
        self.tags.retain(|arn, _| arns.contains(arn));
        self.tags.extend(self.aws.describe_tags(&new).await?);
        Ok(())
    }

    /// Listeners: known ones by ARN, twenty in a call; all of a load balancer where none is known, or one is gone.
    async fn read_listeners(&mut self, observed: &mut Observed) -> Result<(), AwsError> {
        let ours: BTreeSet<_> = observed.balancers.values().map(|balancer| balancer.arn.clone()).collect();
        self.listeners.retain(|balancer, _| ours.contains(balancer));
        let known: Vec<_> = self.listeners.values().flatten().cloned().collect();
        let mut by_arn = BTreeMap::new();
        for chunk in known.chunks(LISTENERS_PER_CALL) {
            by_arn.extend(self.aws.describe_listeners(chunk).await?.unwrap_or_default());
        }
        for balancer in observed.balancers.values_mut() {
            let listed = self.listeners.get(&balancer.arn).filter(|listed| !listed.is_empty());
            let again = listed.and_then(|listed| listed.iter().map(|arn| by_arn.get(arn).cloned()).collect());
            let listeners = match again {
                Some(again) => again,
                None => unless_gone(self.aws.describe_listeners_of(&balancer.arn).await)?.unwrap_or_default(),
            };
            let arns = listeners.values().map(|listener| listener.arn.clone()).collect();
            self.listeners.insert(balancer.arn.clone(), arns);
            balancer.listeners = Some(listeners);
        }
        Ok(())
    }

    /// How far attachments are: the listing of Auto Scaling groups does not say.
    async fn read_attachments(&self, observed: &mut Observed) -> Result<(), AwsError> {
        let ours: Vec<_> = observed.target_groups.values().map(|group| group.arn.clone()).collect();
        for (name, asg) in &mut observed.asgs {
            if ours.iter().any(|arn| asg.sources.contains_key(arn)) {
                asg.sources = self.aws.describe_sources(name).await?;
            }
        }
        Ok(())
    }
}

/// The answer; none about what was deleted in between.
fn unless_gone<T>(answer: Result<T, AwsError>) -> Result<Option<T>, AwsError> {
    match answer {
        Err(error) if error.class == Class::Missing => Ok(None),
        other => other.map(Some),
    }
}

/// What tells this cluster from another of its name; not known where we may not read it.
async fn cluster_uid(client: &Client) -> Option<String> {
    Api::<Namespace>::all(client.clone()).get("kube-system").await.ok()?.uid()
}
