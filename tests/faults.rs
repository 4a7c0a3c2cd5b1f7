//! The real SDK against an AWS that throttles, denies, forgets, lags and hangs up.
//!
//! A small stateful fake answers the query protocol of the three services; faults are queued for each action and used up
//! one by one. Waits of the SDK between two attempts are noted down and cut short.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aws_config::timeout::TimeoutConfig;
use aws_sdk_elasticloadbalancingv2::config::{
    AsyncSleep, Credentials, SharedAsyncSleep, SharedCredentialsProvider, Sleep, StalledStreamProtectionConfig,
};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::runtime::{reflector, watcher};
use serde_json::json;
use tokio::sync::watch;
use weir::aws::Aws;
use weir::aws::classify::{AwsError, Class};
use weir::cluster::event::{Events, Kind};
use weir::cluster::lease::{Claim, Until};
use weir::cluster::reason::Reason;
use weir::cluster::service::set_hostname;
use weir::controller::account::{Account, StepError};
use weir::controller::apply::apply;
use weir::controller::desired::{DesiredBalancer, DesiredTargetGroup, Policy};
use weir::controller::drift::{Rotation, check};
use weir::controller::facts::{Facts, NodeGroups};
use weir::controller::observed::{BalancerState, Carried, HealthCheck};
use weir::controller::plan::Step;
use weir::controller::reconcile::{Context, Interrupted, reconcile};
use weir::controller::report::{READY, Reporter};
use weir::controller::standing::Standings;
use weir::metrics::Metrics;
use weir::model::family::Family;
use weir::model::id::{LoadBalancerArn, ServiceKey};
use weir::model::name::{self, TargetGroupTraits};
use weir::model::ownership::{Owner, Role, Tags, service_tags, with_cluster_uid};
use weir::model::service::{AddressType, Protocol, Scheme, parse};
use wiremock::matchers::any;
use wiremock::{Match, Mock, MockServer, Request, Respond, ResponseTemplate};

const CLUSTER: &str = "demo";
/// Attempts of one call (`weir::aws`).
const ATTEMPTS: usize = 4;

/// Longest wait between two attempts; what is longer is a time-out of the SDK's own.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What goes wrong with one call.
#[derive(Clone, Debug)]
enum Fault {
    /// An error with status and code.
    Error(u16, &'static str),
    /// A body that is not the protocol's.
    Page(u16),
    /// The call takes effect, and the connection is closed.
    Lost,
}

/// A resource: its ARN or id, and its tags.
#[derive(Clone, Debug)]
struct Resource {
    id: String,
    tags: Tags,
}

#[derive(Debug, Default)]
struct Cloud {
    faults: BTreeMap<String, VecDeque<Fault>>,
    calls: Vec<String>,
    serial: usize,
    balancers: BTreeMap<String, Resource>,
    target_groups: BTreeMap<String, Resource>,
    groups: BTreeMap<String, Resource>,
    /// Describes of load balancers that still say `provisioning`.
    provisioning: usize,
    /// Listings of target groups that show nothing yet.
    lag: usize,
    /// Network interfaces that carry a security group: id and description.
    interfaces: Vec<(String, String)>,
    /// VPC endpoint services, and the load balancer that each offers.
    endpoint_services: BTreeMap<String, String>,
    /// Security groups with a rule that names another, and that rule's description.
    references: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<Cloud>>);

type Form = BTreeMap<String, String>;

fn form(request: &Request) -> Form {
    let mut url = request.url.clone();
    url.set_query(std::str::from_utf8(&request.body).ok());
    url.query_pairs().into_owned().collect()
}

/// The values of `prefix.1suffix`, `prefix.2suffix`, …
fn list(form: &Form, prefix: &str, suffix: &str) -> Vec<String> {
    (1..).map_while(|number| form.get(&format!("{prefix}.{number}{suffix}")).cloned()).collect()
}

fn tags(form: &Form, prefix: &str) -> Tags {
    list(form, prefix, ".Key").into_iter().zip(list(form, prefix, ".Value")).collect()
}

fn shown_tags(tags: &Tags, element: &str) -> String {
    tags.iter().fold(String::new(), |mut text, (key, value)| {
        let (k, v) = if element == "item" { ("key", "value") } else { ("Key", "Value") };
        write!(text, "<{element}><{k}>{key}</{k}><{v}>{value}</{v}></{element}>").unwrap();
        text
    })
}

impl Fake {
    fn cloud(&self) -> MutexGuard<'_, Cloud> {
        self.0.lock().unwrap()
    }

    /// Queues a fault for the next so many calls of an action.
    fn fail(&self, action: &str, times: usize, fault: &Fault) {
        let mut cloud = self.cloud();
        let queue = cloud.faults.entry(action.to_owned()).or_default();
        queue.extend(std::iter::repeat_n(fault.clone(), times));
    }

    /// How often an action was called.
    fn calls(&self, action: &str) -> usize {
        self.cloud().calls.iter().filter(|call| *call == action).count()
    }

    fn answer(&self, form: &Form) -> ResponseTemplate {
        let action = form["Action"].as_str();
        let mut cloud = self.cloud();
        cloud.calls.push(action.to_owned());
        let fault = cloud.faults.get_mut(action).and_then(VecDeque::pop_front);
        match fault {
            None | Some(Fault::Lost) => cloud.take(action, form),
            Some(Fault::Page(status)) => ResponseTemplate::new(status).set_body_string("<html>Sorry</html>"),
            Some(Fault::Error(status, code)) => error(action, status, code),
        }
    }
}

impl Respond for Fake {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        self.answer(&form(request))
    }
}

/// Matches calls whose answer is to be lost.
struct Lossy(Fake);

impl Match for Lossy {
    fn matches(&self, request: &Request) -> bool {
        let cloud = self.0.cloud();
        let queue = cloud.faults.get(&form(request)["Action"]);
        queue.and_then(VecDeque::front).is_some_and(|fault| matches!(fault, Fault::Lost))
    }
}

fn is_ec2(action: &str) -> bool {
    const EC2: [&str; 6] =
        ["SecurityGroup", "NetworkInterfaces", "DescribeInstances", "Subnets", "RouteTables", "VpcEndpoint"];
    EC2.iter().any(|part| action.contains(part))
}

fn error(action: &str, status: u16, code: &str) -> ResponseTemplate {
    let error = format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>because</Message></Error>");
    let body = if is_ec2(action) {
        format!("<Response><Errors>{error}</Errors><RequestID>r</RequestID></Response>")
    } else {
        format!("<ErrorResponse>{error}<RequestId>r</RequestId></ErrorResponse>")
    };
    ResponseTemplate::new(status).set_body_string(body)
}

fn success(action: &str, result: &str) -> ResponseTemplate {
    let body = if is_ec2(action) {
        format!("<{action}Response>{result}</{action}Response>")
    } else {
        format!("<{action}Response><{action}Result>{result}</{action}Result></{action}Response>")
    };
    ResponseTemplate::new(200).set_body_string(body)
}

impl Cloud {
    fn next(&mut self) -> usize {
        self.serial += 1;
        self.serial
    }

    fn balancer(&self, name: &str) -> String {
        let state = if self.provisioning > 0 { "provisioning" } else { "active" };
        format!(
            "<member><LoadBalancerArn>{arn}</LoadBalancerArn><LoadBalancerName>{name}</LoadBalancerName>\
             <DNSName>{name}.elb.example</DNSName><Scheme>internet-facing</Scheme><Type>network</Type>\
             <State><Code>{state}</Code></State><AvailabilityZones><member><ZoneName>us-east-1a</ZoneName>\
             <SubnetId>subnet-1</SubnetId></member></AvailabilityZones></member>",
            arn = self.balancers[name].id
        )
    }

    fn target_group(&self, name: &str) -> String {
        format!(
            "<member><TargetGroupArn>{arn}</TargetGroupArn><TargetGroupName>{name}</TargetGroupName>\
             <Protocol>TCP</Protocol><Port>30080</Port><VpcId>vpc-1</VpcId><TargetType>instance</TargetType></member>",
            arn = self.target_groups[name].id
        )
    }

    fn group(name: &str, group: &Resource) -> String {
        format!(
            "<item><groupId>{}</groupId><groupName>{name}</groupName><tagSet>{}</tagSet></item>",
            group.id,
            shown_tags(&group.tags, "item")
        )
    }

    fn take(&mut self, action: &str, form: &Form) -> ResponseTemplate {
        let name = form.get("Name").or_else(|| form.get("GroupName")).cloned().unwrap_or_default();
        match action {
            "CreateLoadBalancer" => {
                let id = format!("arn:lb/{}", self.next());
                self.balancers.entry(name.clone()).or_insert(Resource { id, tags: tags(form, "Tags.member") });
                success(action, &format!("<LoadBalancers>{}</LoadBalancers>", self.balancer(&name)))
            }
            "DescribeLoadBalancers" => {
                let shown: String = self.balancers.keys().map(|name| self.balancer(name)).collect();
                self.provisioning = self.provisioning.saturating_sub(1);
                success(action, &format!("<LoadBalancers>{shown}</LoadBalancers>"))
            }
            "CreateTargetGroup" => {
                let id = format!("arn:tg/{}", self.next());
                self.target_groups.entry(name.clone()).or_insert(Resource { id, tags: tags(form, "Tags.member") });
                success(action, &format!("<TargetGroups>{}</TargetGroups>", self.target_group(&name)))
            }
            "DescribeTargetGroups" => {
                let all: String = self.target_groups.keys().map(|name| self.target_group(name)).collect();
                let shown = if self.lag > 0 { String::new() } else { all };
                self.lag = self.lag.saturating_sub(1);
                success(action, &format!("<TargetGroups>{shown}</TargetGroups>"))
            }
            "DeleteTargetGroup" => {
                self.target_groups.retain(|_, group| group.id != form["TargetGroupArn"]);
                success(action, "")
            }
            "DescribeTags" => {
                let arns = list(form, "ResourceArns.member", "");
                let all = self.balancers.values().chain(self.target_groups.values());
                let shown: String = all
                    .filter(|resource| arns.contains(&resource.id))
                    .map(|resource| {
                        let (id, tags) = (&resource.id, shown_tags(&resource.tags, "member"));
                        format!("<member><ResourceArn>{id}</ResourceArn><Tags>{tags}</Tags></member>")
                    })
                    .collect();
                success(action, &format!("<TagDescriptions>{shown}</TagDescriptions>"))
            }
            "CreateSecurityGroup" if self.groups.contains_key(&name) => error(action, 400, "InvalidGroup.Duplicate"),
            "CreateSecurityGroup" => {
                let id = format!("sg-{}", self.next());
                self.groups.insert(name, Resource { id: id.clone(), tags: tags(form, "TagSpecification.1.Tag") });
                success(action, &format!("<groupId>{id}</groupId>"))
            }
            "DescribeSecurityGroups" => success(
                action,
                &format!("<securityGroupInfo>{}</securityGroupInfo>", {
                    if form["Filter.1.Name"] == "ip-permission.group-id" {
                        self.shown_references(&form["Filter.1.Value.1"])
                    } else {
                        self.groups.iter().map(|(name, group)| Self::group(name, group)).collect()
                    }
                }),
            ),
            "RevokeSecurityGroupIngress" => {
                self.references.remove(&form["GroupId"]);
                success(action, "<return>true</return>")
            }
            "DeleteSecurityGroup" if self.is_in_use() => error(action, 400, "DependencyViolation"),
            "DeleteSecurityGroup" => {
                self.groups.retain(|_, group| group.id != form["GroupId"]);
                success(action, "<return>true</return>")
            }
            "DescribeNetworkInterfaces" => {
                let shown: String = self
                    .interfaces
                    .iter()
                    .map(|(id, text)| {
                        format!("<item><networkInterfaceId>{id}</networkInterfaceId><description>{text}</description></item>")
                    })
                    .collect();
                success(action, &format!("<networkInterfaceSet>{shown}</networkInterfaceSet>"))
            }
            "DescribeVpcEndpointServiceConfigurations" => {
                let item = |(id, arn): (&String, &String)| {
                    format!(
                        "<item><serviceId>{id}</serviceId><networkLoadBalancerArnSet><item>{arn}</item>\
                         </networkLoadBalancerArnSet></item>"
                    )
                };
                let shown: String = self.endpoint_services.iter().map(item).collect();
                success(action, &format!("<serviceConfigurationSet>{shown}</serviceConfigurationSet>"))
            }
            "DescribeListeners"
            | "DescribeTargetHealth"
            | "DescribeAutoScalingGroups"
            | "DescribeInstances"
            | "DescribeSubnets"
            | "DescribeRouteTables" => success(action, ""),
            _ => error(action, 400, "NotInThisFake"),
        }
    }

    fn is_in_use(&self) -> bool {
        !self.interfaces.is_empty() || !self.references.is_empty()
    }

    fn shown_references(&self, id: &str) -> String {
        let item = |(group, text): (&String, &String)| {
            format!(
                "<item><groupId>{group}</groupId><groupName>{group}</groupName><ipPermissions><item>\
                 <ipProtocol>tcp</ipProtocol><fromPort>1</fromPort><toPort>2</toPort><groups><item>\
                 <groupId>{id}</groupId><description>{text}</description></item></groups></item></ipPermissions></item>"
            )
        };
        self.references.iter().map(item).collect()
    }
}

/// Notes the waits between two attempts down, and cuts them short.
#[derive(Clone, Debug, Default)]
struct Impatient {
    waits: Arc<Mutex<Vec<Duration>>>,
    /// Leadership that is lost during the next wait.
    loses: Arc<Mutex<Option<watch::Sender<Option<Until>>>>>,
}

impl AsyncSleep for Impatient {
    fn sleep(&self, duration: Duration) -> Sleep {
        if duration > LONGEST_WAIT {
            return Sleep::new(tokio::time::sleep(duration));
        }
        self.waits.lock().unwrap().push(duration);
        if let Some(leader) = self.loses.lock().unwrap().take() {
            leader.send_replace(None);
        }
        Sleep::new(tokio::time::sleep(Duration::from_millis(1)))
    }
}

/// The controller's view of a fake account.
struct World {
    account: Account,
    fake: Fake,
    waits: Impatient,
    leader: watch::Sender<Option<Until>>,
    _server: MockServer,
}

impl World {
    async fn new() -> Self {
        let fake = Fake::default();
        let server = MockServer::start().await;
        let lost = {
            let fake = fake.clone();
            move |request: &Request| {
                fake.answer(&form(request));
                io::Error::from(io::ErrorKind::ConnectionReset)
            }
        };
        Mock::given(Lossy(fake.clone())).respond_with_err(lost).with_priority(1).mount(&server).await;
        Mock::given(any()).respond_with(fake.clone()).mount(&server).await;

        let waits = Impatient::default();
        let config = weir::aws::configuration(Some("us-east-1".into())).await.unwrap();
        let mut config = config.into_builder();
        config
            .set_credentials_provider(Some(SharedCredentialsProvider::new(Credentials::new(
                "k", "s", None, None, "test",
            ))))
            .set_endpoint_url(Some(server.uri()))
            // Its timers would be noted down as waits.
            .set_timeout_config(Some(TimeoutConfig::disabled()))
            .set_stalled_stream_protection(Some(StalledStreamProtectionConfig::disabled()))
            .set_sleep_impl(Some(SharedAsyncSleep::new(waits.clone())));
        let policy = Policy {
            cluster: CLUSTER.into(),
            cluster_uid: "c-1".into(),
            default_scheme: Scheme::InternetFacing,
            node_ports: (30000, 32767),
            health_port: 10256,
        };
        let (leader, follows) = watch::channel(Some(Until::End));
        let claim = Claim::following(follows);
        let aws = Aws::new(&config.build(), &Metrics::default(), &claim);
        let (account, _) = Account::new(aws, policy, Some("vpc-1".into()), claim);
        let facts = Facts {
            vpc: "vpc-1".into(),
            subnets: BTreeMap::new(),
            node_groups: NodeGroups::default(),
            groups: BTreeMap::new(),
            prefix_lists: BTreeMap::new(),
        };
        account.state().facts = Some(facts);
        Self { account, fake, waits, leader, _server: server }
    }

    async fn apply(&self, step: &Step) -> Result<(), StepError> {
        apply(&self.account, step).await
    }

    /// The error of a step that must fail in AWS.
    async fn refusal(&self, step: &Step) -> AwsError {
        match self.apply(step).await {
            Err(StepError::Aws(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    async fn check(&self, rotation: &mut Rotation) -> bool {
        check(&self.account, rotation).await.unwrap()
    }

    fn waits(&self) -> Vec<Duration> {
        self.waits.waits.lock().unwrap().clone()
    }

    fn knows_target_group(&self) -> bool {
        self.account.state().observed.target_groups.contains_key(&target_group().name)
    }
}

fn owner() -> Owner {
    Owner { service: ServiceKey::new("shop", "order"), uid: "u-1".into() }
}

fn tags_of(role: Role) -> Tags {
    with_cluster_uid(service_tags(CLUSTER, &owner(), role, &Tags::new()), "c-1")
}

fn target_group() -> DesiredTargetGroup {
    let traits = TargetGroupTraits { protocol: "TCP", node_port: 30080, family: Family::Ipv4, picks_nodes: false };
    DesiredTargetGroup {
        name: name::target_group(CLUSTER, &owner().service, "lb", 80, traits),
        vpc: "vpc-1".into(),
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        port: 30080,
        health: HealthCheck {
            protocol: "HTTP".into(),
            port: "10256".into(),
            path: Some("/healthz".into()),
            interval: 10,
            timeout: 6,
            healthy: 2,
            unhealthy: 2,
            codes: Some("200-399".into()),
        },
        attributes: BTreeMap::new(),
        nodes: BTreeMap::new(),
        tags: tags_of(Role::TargetGroup),
    }
}

fn create_target_group() -> Step {
    Step::CreateTargetGroup(target_group())
}

fn delete_target_group() -> Step {
    Step::DeleteTargetGroup { name: target_group().name, because: "a test" }
}

fn create_balancer() -> Step {
    let subnets = [("us-east-1a".into(), "subnet-1".into())].into();
    let tags = tags_of(Role::Balancer);
    Step::CreateBalancer(DesiredBalancer {
        name: "lb".into(),
        scheme: Scheme::InternetFacing,
        address_type: AddressType::Ipv4,
        subnets,
        source_nat: false,
        groups: vec![Carried::Ours("sg".into())],
        group_ids: BTreeSet::new(),
        rules_on_private_link: true,
        capacity: 0,
        tags,
        attributes: BTreeMap::new(),
    })
}

fn create_group() -> Step {
    Step::CreateGroup { name: "sg".into(), description: "a test's".into(), tags: tags_of(Role::FrontendGroup) }
}

fn delete_group() -> Step {
    Step::DeleteGroup { name: "sg".into(), because: "a test" }
}

/// An API server that knows one Service and one Node, and refuses as it is told.
struct ApiServer {
    server: MockServer,
    refusals: Arc<Mutex<BTreeMap<&'static str, u16>>>,
}

/// What a Service of ours is about when it has all it asks for but our finalizer.
fn service() -> Service {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "order", "uid": "u-1"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "weir.dev/nlb",
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}],
        },
    });
    serde_json::from_value(service).unwrap()
}

fn node() -> Node {
    serde_json::from_value(json!({"metadata": {"name": "a", "uid": "n-1"}})).unwrap()
}

impl ApiServer {
    /// Answers each write with what was written.
    async fn new() -> Self {
        let server = MockServer::start().await;
        let refusals = Arc::<Mutex<BTreeMap<&str, u16>>>::default();
        let refused = Arc::clone(&refusals);
        let answer = move |request: &Request| {
            let path = request.url.path();
            let refusal = refused.lock().unwrap().iter().find(|(part, _)| path.contains(*part)).map(|(_, code)| *code);
            match refusal.filter(|_| request.method.as_str() != "GET") {
                Some(code) => {
                    let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "because"});
                    ResponseTemplate::new(code).set_body_json(status)
                }
                None if path.contains("/services/") => ResponseTemplate::new(200).set_body_json(service()),
                None => ResponseTemplate::new(201).set_body_bytes(request.body.clone()),
            }
        };
        Mock::given(any()).respond_with(answer).mount(&server).await;
        Self { server, refusals }
    }

    fn client(&self) -> kube::Client {
        kube::Client::try_from(kube::Config::new(self.server.uri().parse().unwrap())).unwrap()
    }

    /// Refuses writes to paths with this part from now on.
    fn refuse(&self, part: &'static str, code: u16) {
        self.refusals.lock().unwrap().insert(part, code);
    }

    fn allow(&self) {
        self.refusals.lock().unwrap().clear();
    }

    fn reporter(&self) -> Reporter {
        let (services, mut service_writer) = reflector::store();
        service_writer.apply_watcher_event(&watcher::Event::Apply(service()));
        let (nodes, mut node_writer) = reflector::store();
        node_writer.apply_watcher_event(&watcher::Event::Apply(node()));
        Reporter::new(Events::new(self.client(), "weir-0".into()), services, nodes, Metrics::default())
    }

    /// Writes to paths with this part, tried or done.
    async fn writes(&self, part: &str) -> usize {
        let requests = self.server.received_requests().await.unwrap();
        let is_write = |request: &&Request| request.method.as_str() != "GET" && request.url.path().contains(part);
        requests.iter().filter(is_write).count()
    }
}

#[tokio::test]
async fn an_event_that_nobody_heard_is_published_again_and_one_that_was_heard_is_not() {
    let api = ApiServer::new().await;
    let reporter = api.reporter();
    let tell = async || reporter.tell(&service(), Kind::Normal, READY, "reachable").await;
    api.refuse("/events", 500);
    tell().await;
    assert!(reporter.owes(&service(), READY));
    api.allow();
    for _ in 0..3 {
        tell().await;
    }
    assert_eq!(api.writes("/events").await, 2, "one refused, one heard");
    assert!(!reporter.owes(&service(), READY) && reporter.has_told(&service(), READY, "reachable"));
}

#[tokio::test]
async fn a_nodes_trouble_is_told_again_when_it_comes_back_and_not_while_it_lasts() {
    let api = ApiServer::new().await;
    let reporter = api.reporter();
    let refused = Reason::TargetRefused;
    for troubled in [true, true, false, true] {
        reporter.retain_nodes(&troubled.then(|| ("a".to_owned(), refused)).into_iter().collect());
        if troubled {
            reporter.warn_node("a", refused, "instance i-1 is stopped").await;
        }
    }
    assert_eq!(api.writes("/events").await, 2);
}

#[tokio::test]
async fn what_was_said_of_a_service_that_is_gone_is_forgotten() {
    let api = ApiServer::new().await;
    let reporter = api.reporter();
    reporter.tell(&service(), Kind::Normal, READY, "reachable").await;
    reporter.retain_services(&["u-1".to_owned()].into());
    assert!(reporter.has_told(&service(), READY, "reachable"));
    reporter.retain_services(&["u-2".to_owned()].into());
    assert!(!reporter.has_told(&service(), READY, "reachable"));
}

#[tokio::test]
async fn a_hostname_that_the_api_server_refuses_is_not_taken_for_written() {
    let api = ApiServer::new().await;
    assert!(set_hostname(&api.client(), &service(), Some("lb.example")).await.unwrap());
    for code in [403, 422] {
        api.refuse("/status", code);
        let refused = set_hostname(&api.client(), &service(), Some("lb.example")).await;
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == code));
    }
    // Between the two it became another Service of that name.
    let mut before = service();
    before.metadata.uid = Some("u-0".into());
    assert!(!set_hostname(&api.client(), &before, Some("lb.example")).await.unwrap());
}

#[tokio::test]
async fn a_process_that_has_lost_the_lease_puts_no_finalizer_back() {
    let (world, api) = (World::new().await, ApiServer::new().await);
    world.apply(&create_target_group()).await.unwrap();
    let leader = world.leader.clone();
    let context = Arc::new(Context {
        client: api.client(),
        account: Arc::new(world.account),
        reporter: Arc::new(api.reporter()),
        services: reflector::store().0,
        class: "weir.dev/nlb".into(),
        claim_classless: false,
        longest_wait: Duration::from_secs(1),
        metrics: Metrics::default(),
        standings: Standings::default(),
        failures: Mutex::default(),
        contests: Mutex::default(),
    });
    leader.send_replace(None);
    let ended = reconcile(Arc::new(service()), Arc::clone(&context)).await;
    assert!(matches!(ended, Err(Interrupted::NotLeader(_))));
    assert_eq!(api.writes("/services/").await, 0);
    leader.send_replace(Some(Until::End));
    reconcile(Arc::new(service()), context).await.unwrap();
    assert_eq!(api.writes("/services/").await, 1);
}

#[tokio::test]
async fn throttling_is_waited_out() {
    let world = World::new().await;
    world.fake.fail("CreateTargetGroup", ATTEMPTS - 1, &Fault::Error(400, "Throttling"));
    world.apply(&create_target_group()).await.unwrap();
    assert_eq!(world.fake.calls("CreateTargetGroup"), ATTEMPTS);
    assert!(world.knows_target_group());
}

#[tokio::test]
async fn throttling_without_end_is_given_back_after_a_few_attempts_with_growing_waits() {
    let world = World::new().await;
    world.fake.fail("CreateTargetGroup", 100, &Fault::Error(400, "Throttling"));
    let error = world.refusal(&create_target_group()).await;
    assert_eq!(error.class, Class::Throttled);
    assert_eq!(world.fake.calls("CreateTargetGroup"), ATTEMPTS);
    // Each is a random part of twice the last one's bound, so bounds can be told, and that there is one for each attempt.
    let waits = world.waits();
    assert_eq!(waits.len(), ATTEMPTS - 1, "{waits:?}");
    for (wait, bound) in waits.iter().zip([1, 2, 4]) {
        assert!(!wait.is_zero() && *wait <= Duration::from_secs(bound), "{waits:?}");
    }
    let (first, longest) = error.delays();
    assert!(first >= Duration::from_secs(5) && longest > first, "the Service waits longer than one call does");
}

#[tokio::test]
async fn a_service_that_is_unavailable_for_a_moment_is_asked_again() {
    for fault in [Fault::Error(503, "ServiceUnavailable"), Fault::Page(503)] {
        let world = World::new().await;
        world.fake.fail("CreateTargetGroup", 2, &fault);
        world.apply(&create_target_group()).await.unwrap();
        assert_eq!(world.fake.calls("CreateTargetGroup"), 3, "{fault:?}");
    }
}

#[tokio::test]
async fn a_service_that_stays_unavailable_is_a_passing_fault_whatever_it_says() {
    for fault in [Fault::Error(503, "ServiceUnavailable"), Fault::Page(503), Fault::Page(500)] {
        let world = World::new().await;
        world.fake.fail("CreateTargetGroup", 100, &fault);
        let error = world.refusal(&create_target_group()).await;
        assert_eq!(error.class, Class::Transient, "{error}");
        assert_eq!(world.fake.calls("CreateTargetGroup"), ATTEMPTS, "{fault:?}");
        assert!(!world.knows_target_group());
    }
}

#[tokio::test]
async fn r1_a_denial_names_the_action_and_the_resource_and_is_not_repeated() {
    let world = World::new().await;
    world.apply(&create_target_group()).await.unwrap();
    world.fake.fail("DeleteTargetGroup", 1, &Fault::Error(403, "AccessDenied"));
    let error = world.refusal(&delete_target_group()).await;
    assert_eq!(
        error.to_string(),
        "AWS denies elasticloadbalancing:DeleteTargetGroup on arn:tg/1; the controller's IAM role needs this \
         permission (AccessDenied: because)"
    );
    assert_eq!(world.fake.calls("DeleteTargetGroup"), 1);
    assert!(world.knows_target_group(), "it is still there");
}

#[tokio::test]
async fn a_denial_by_ec2_names_the_action_and_the_resource_too() {
    let world = World::new().await;
    world.fake.fail("CreateSecurityGroup", 1, &Fault::Error(403, "UnauthorizedOperation"));
    let error = world.refusal(&create_group()).await;
    assert!(error.to_string().starts_with("AWS denies ec2:CreateSecurityGroup on sg;"), "{error}");
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_told_from_throttling() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.fake.fail("CreateLoadBalancer", 1, &Fault::Error(400, "TooManyLoadBalancers"));
    let error = world.refusal(&create_balancer()).await;
    assert_eq!(error.class, Class::Quota);
    assert_eq!(world.fake.calls("CreateLoadBalancer"), 1);
    assert_eq!(world.waits(), Vec::<Duration>::new());
}

#[tokio::test]
async fn what_was_just_made_survives_one_listing_that_does_not_show_it_yet() {
    let world = World::new().await;
    let mut rotation = Rotation::default();
    world.apply(&create_target_group()).await.unwrap();
    world.fake.cloud().lag = 1;
    assert!(world.check(&mut rotation).await, "it wants to look again soon");
    assert!(world.knows_target_group());
    assert!(!world.check(&mut rotation).await);
    assert!(world.knows_target_group());
    // The count begins anew.
    world.fake.cloud().lag = 1;
    world.check(&mut rotation).await;
    assert!(world.knows_target_group());
}

#[tokio::test]
async fn what_two_listings_in_a_row_miss_is_gone() {
    let world = World::new().await;
    let mut rotation = Rotation::default();
    world.apply(&create_target_group()).await.unwrap();
    world.fake.cloud().target_groups.clear();
    world.check(&mut rotation).await;
    assert!(world.knows_target_group());
    world.check(&mut rotation).await;
    assert!(!world.knows_target_group());
}

#[tokio::test]
async fn a_new_process_finds_what_an_earlier_one_made() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.apply(&create_balancer()).await.unwrap();
    world.apply(&create_target_group()).await.unwrap();
    let before = world.account.state().observed.clone();
    world.account.state().observed = weir::controller::observed::Observed::default();
    world.check(&mut Rotation::default()).await;
    let state = world.account.state();
    let slice = state.observed.of(CLUSTER, "u-1");
    assert_eq!((slice.balancers.len(), slice.target_groups.len(), slice.groups.len()), (1, 1, 1));
    assert_eq!(slice.balancers[0].arn, before.balancers["lb"].arn);
}

#[tokio::test]
async fn the_name_of_a_target_group_proves_nothing_without_tags() {
    let world = World::new().await;
    let stranger = Resource { id: "arn:tg/x".into(), tags: Tags::new() };
    world.fake.cloud().target_groups.insert(target_group().name, stranger);
    world.check(&mut Rotation::default()).await;
    assert!(!world.knows_target_group());
}

#[tokio::test]
async fn a_load_balancer_whose_tags_do_not_show_for_a_while_is_known_as_soon_as_they_do() {
    let world = World::new().await;
    let mut rotation = Rotation::default();
    let generated = name::balancer(CLUSTER, &owner().service, "u-1", "internal");
    for (name, id) in [(generated.as_str(), "arn:lb/1"), ("chosen", "arn:lb/2"), ("theirs", "arn:lb/3")] {
        world.fake.cloud().balancers.insert(name.into(), Resource { id: id.into(), tags: Tags::new() });
    }
    world.check(&mut rotation).await;
    let service = json!({
        "metadata": {
            "namespace": "shop", "name": "order", "uid": "u-1",
            "annotations": {"service.beta.kubernetes.io/aws-load-balancer-name": "chosen"},
        },
        "spec": {"ports": [{"port": 80, "nodePort": 30080}]},
    });
    let spec = parse(&serde_json::from_value(service).unwrap()).unwrap();
    world.account.state().decide(&spec, &world.account.policy).unwrap_err();
    for balancer in world.fake.cloud().balancers.values_mut() {
        balancer.tags = tags_of(Role::Balancer);
    }
    world.check(&mut rotation).await;
    let state = world.account.state();
    assert_eq!(state.observed.balancers.keys().collect::<Vec<_>>(), ["chosen", &generated]);
    assert!(state.observed.foreign_balancers.contains_key("theirs"), "nobody asks for it, so nobody asked again");
}

#[tokio::test]
async fn another_cluster_of_the_same_name_keeps_what_it_owns() {
    let world = World::new().await;
    let theirs = |id: &str, role| Resource { id: id.into(), tags: with_cluster_uid(tags_of(role), "c-2") };
    {
        let mut cloud = world.fake.cloud();
        cloud.target_groups.insert(target_group().name, theirs("arn:tg/x", Role::TargetGroup));
        cloud.balancers.insert("lb".into(), theirs("arn:lb/x", Role::Balancer));
        cloud.groups.insert("sg".into(), theirs("sg-x", Role::FrontendGroup));
    }
    world.check(&mut Rotation::default()).await;
    {
        let state = world.account.state();
        assert!(state.observed.owners(CLUSTER).is_empty());
        assert!(state.observed.foreign_balancers.contains_key("lb"), "its name is taken");
    }
    // A group that would have to be taken over is not.
    assert_eq!(world.refusal(&create_group()).await.class, Class::Exists);
}

#[tokio::test]
async fn r3_a_security_group_in_use_is_deleted_once_and_the_interface_is_named() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.fake.cloud().interfaces = vec![("eni-0ab".into(), "ELB net/lb/1".into())];
    let error = world.refusal(&delete_group()).await;
    assert_eq!(error.class, Class::Conflict);
    assert!(error.to_string().contains("network interface eni-0ab (ELB net/lb/1) still uses it"), "{error}");
    assert_eq!(world.fake.calls("DeleteSecurityGroup"), 1);
    assert!(error.delays().0 >= Duration::from_secs(2), "no write is repeated faster");

    world.fake.cloud().interfaces.clear();
    world.apply(&delete_group()).await.unwrap();
    assert!(world.account.state().observed.groups.is_empty());
}

#[tokio::test]
async fn r2_a_rule_with_our_mark_goes_before_the_group_it_names() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.fake.cloud().references = [("sg-nodes".into(), "weir.dev/cluster=demo: x".into())].into();
    world.apply(&delete_group()).await.unwrap();
    assert_eq!(world.fake.calls("RevokeSecurityGroupIngress"), 1);
    assert!(world.fake.cloud().groups.is_empty());
}

#[tokio::test]
async fn r3_a_strangers_rule_is_named_and_left_alone() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.fake.cloud().references = [("sg-theirs".into(), "by hand".into())].into();
    let error = world.refusal(&delete_group()).await;
    assert!(error.to_string().contains("the rule tcp 1-2 from sg-1 of sg-theirs still uses it"), "{error}");
    assert_eq!(world.fake.calls("RevokeSecurityGroupIngress"), 0);
}

#[tokio::test]
async fn a_load_balancer_is_usable_when_aws_says_so_and_its_owner_is_told_once() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.fake.cloud().provisioning = 3;
    world.apply(&create_balancer()).await.unwrap();
    let arns: Vec<LoadBalancerArn> = world.account.state().provisioning();
    let mut changed = vec![];
    for _ in 0..5 {
        let fresh = world.account.aws.describe_balancers_by_arn(&arns).await.unwrap();
        changed.push(world.account.state().record_states(fresh).len());
    }
    assert_eq!(changed, [0, 0, 0, 1, 0]);
    let state = world.account.state();
    assert_eq!(state.observed.balancers["lb"].state, BalancerState::Active);
    assert_eq!(state.provisioning(), []);
}

#[tokio::test]
async fn r7_the_endpoint_services_that_keep_a_load_balancer_are_named() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.apply(&create_balancer()).await.unwrap();
    let arn = world.account.state().observed.balancers["lb"].arn.to_string();
    world.fake.cloud().endpoint_services =
        [("vpce-svc-1".into(), arn), ("vpce-svc-2".into(), "arn:lb/theirs".into())].into();
    let delete = Step::DeleteBalancer { name: "lb".into(), because: "a test" };
    world.fake.fail("DeleteLoadBalancer", 2, &Fault::Error(400, "ResourceInUse"));
    let error = world.refusal(&delete).await;
    assert!(error.to_string().contains("because: VPC endpoint service vpce-svc-1 uses it"), "{error}");
    assert_eq!(error.delays().0, Duration::from_mins(1));
    // Without permission to look, that is told beside AWS's own words.
    world.fake.fail("DescribeVpcEndpointServiceConfigurations", 1, &Fault::Error(403, "UnauthorizedOperation"));
    let error = world.refusal(&delete).await.to_string();
    assert!(error.contains("(ResourceInUse: because: what uses it cannot be read"), "{error}");
    assert!(error.contains("AWS denies ec2:DescribeVpcEndpointServiceConfigurations"), "{error}");
}

/// Takes nine seconds: the waits are tokio's, not the SDK's.
#[tokio::test]
async fn r8_a_target_group_that_is_in_use_for_a_while_is_deleted_without_a_failure() {
    let world = World::new().await;
    world.apply(&create_target_group()).await.unwrap();
    world.fake.fail("DeleteTargetGroup", 5, &Fault::Error(400, "ResourceInUse"));
    let began = Instant::now();
    world.apply(&delete_target_group()).await.unwrap();
    assert_eq!(world.fake.calls("DeleteTargetGroup"), 6);
    assert!(began.elapsed() >= Duration::from_secs(5), "no hot loop");
    assert!(!world.knows_target_group());
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_ends_in_one_object() {
    let world = World::new().await;
    for action in ["CreateSecurityGroup", "CreateLoadBalancer", "CreateTargetGroup"] {
        world.fake.fail(action, 1, &Fault::Lost);
    }
    for step in [create_group(), create_balancer(), create_target_group()] {
        // Tried again by the SDK, or by the Service's next plan.
        if world.apply(&step).await.is_err() {
            world.apply(&step).await.unwrap();
        }
    }
    let cloud = world.fake.cloud();
    assert_eq!((cloud.groups.len(), cloud.balancers.len(), cloud.target_groups.len()), (1, 1, 1));
    let state = world.account.state();
    assert_eq!(state.observed.groups["sg"].id.as_str(), cloud.groups["sg"].id);
    assert_eq!(state.observed.balancers["lb"].arn.as_str(), cloud.balancers["lb"].id);
    assert_eq!(state.observed.target_groups.len(), 1);
    for action in ["CreateSecurityGroup", "CreateLoadBalancer", "CreateTargetGroup"] {
        assert!(cloud.calls.iter().filter(|call| *call == action).count() >= 2, "{action} was not lost");
    }
}

#[tokio::test]
async fn a_security_group_of_ours_by_name_but_not_by_tag_is_not_taken_over() {
    let world = World::new().await;
    let stranger = Resource { id: "sg-theirs".into(), tags: Tags::new() };
    world.fake.cloud().groups.insert("sg".into(), stranger);
    assert_eq!(world.refusal(&create_group()).await.class, Class::Exists);
    assert_eq!(world.account.state().observed.groups, BTreeMap::new());
}

#[tokio::test]
async fn a_process_that_has_lost_the_lease_makes_no_call() {
    let world = World::new().await;
    world.leader.send_replace(None);
    for step in [create_group(), create_target_group()] {
        assert!(matches!(world.apply(&step).await, Err(StepError::NotLeader)));
    }
    assert_eq!(world.fake.cloud().calls, Vec::<String>::new());
}

#[tokio::test]
async fn a_lease_lost_between_two_attempts_of_a_call_keeps_the_second_back() {
    let world = World::new().await;
    world.fake.fail("CreateTargetGroup", 3, &Fault::Error(503, "ServiceUnavailable"));
    *world.waits.loses.lock().unwrap() = Some(world.leader.clone());
    let error = world.refusal(&create_target_group()).await;
    assert!(error.message.contains("no longer the leader"), "{error}");
    assert_eq!(world.fake.calls("CreateTargetGroup"), 1);
}

#[tokio::test]
async fn every_describe_of_a_check_is_asked_once_for_a_small_account() {
    let world = World::new().await;
    world.apply(&create_group()).await.unwrap();
    world.apply(&create_balancer()).await.unwrap();
    world.apply(&create_target_group()).await.unwrap();
    world.fake.cloud().calls.clear();
    world.check(&mut Rotation::default()).await;
    let calls = world.fake.cloud().calls.clone();
    let distinct: BTreeSet<_> = calls.iter().collect();
    assert_eq!(distinct.len(), calls.len(), "{calls:?}");
    assert!(calls.iter().all(|call| call.starts_with("Describe")), "{calls:?}");
}
