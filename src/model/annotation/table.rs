//! The table: every key, its values, and what becomes of them.

/// A key of the table, whole.
macro_rules! key {
    ($name:literal) => {
        concat!("service.beta.kubernetes.io/", $name)
    };
}

/// `internal` or `internet-facing`.
pub const SCHEME: &str = key!("aws-load-balancer-scheme");
/// `true` for `internal`: an older spelling of [`SCHEME`].
pub const INTERNAL: &str = key!("aws-load-balancer-internal");
/// The load balancer's name.
pub const NAME: &str = key!("aws-load-balancer-name");
/// `ipv4` or `dualstack`.
pub const IP_ADDRESS_TYPE: &str = key!("aws-load-balancer-ip-address-type");
/// Elastic IPs, one for each subnet.
pub const EIP_ALLOCATIONS: &str = key!("aws-load-balancer-eip-allocations");
/// Private IPv4 addresses, one in each subnet.
pub const PRIVATE_IPV4_ADDRESSES: &str = key!("aws-load-balancer-private-ipv4-addresses");
/// IPv6 addresses, one in each subnet.
pub const IPV6_ADDRESSES: &str = key!("aws-load-balancer-ipv6-addresses");
/// Whether UDP clients with IPv6 addresses are served, from a prefix of each subnet.
pub const SOURCE_NAT: &str = key!("aws-load-balancer-enable-prefix-for-ipv6-source-nat");
/// Those prefixes, one for each subnet.
pub const SOURCE_NAT_PREFIXES: &str = key!("aws-load-balancer-source-nat-ipv6-prefixes");
/// Capacity that is reserved.
pub const CAPACITY: &str = key!("aws-load-balancer-minimum-load-balancer-capacity");
/// Prefix lists of those who may connect.
pub const PREFIX_LISTS: &str = key!("aws-load-balancer-security-group-prefix-lists");
/// Security groups of the owner's, in place of one that weir makes.
pub const SECURITY_GROUPS: &str = key!("aws-load-balancer-security-groups");
/// Whether weir admits the load balancer to the nodes.
pub const MANAGE_BACKEND_RULES: &str = key!("aws-load-balancer-manage-backend-security-group-rules");
/// Whether inbound rules hold for what comes through PrivateLink too.
pub const PRIVATE_LINK_RULES: &str = key!("aws-load-balancer-inbound-sg-rules-on-private-link-traffic");
/// Whether the messages of path MTU discovery are let in.
pub const ICMP: &str = key!("aws-load-balancer-enable-icmp-for-path-mtu-discovery");
/// A load balancer without security groups, which weir does not make.
pub const NO_SECURITY_GROUPS: &str = key!("aws-load-balancer-disable-nlb-sg");
/// Ids or names of subnets.
pub const SUBNETS: &str = key!("aws-load-balancer-subnets");
/// Tags for every resource of the Service.
pub const RESOURCE_TAGS: &str = key!("aws-load-balancer-additional-resource-tags");
/// Source ranges; `spec.loadBalancerSourceRanges` goes before it.
pub const SOURCE_RANGES: &str = key!("load-balancer-source-ranges");
/// Which controller should take the Service. With weir the class alone decides; the key is read to say so.
pub const TYPE: &str = key!("aws-load-balancer-type");
/// `instance` is what weir does; `ip` cannot be had.
pub const TARGET_TYPE: &str = key!("aws-load-balancer-nlb-target-type");

/// Certificates of TLS listeners.
pub const SSL_CERT: &str = key!("aws-load-balancer-ssl-cert");
/// Ports whose listeners are TLS.
pub const SSL_PORTS: &str = key!("aws-load-balancer-ssl-ports");
/// Security policy of TLS listeners.
pub const SSL_POLICY: &str = key!("aws-load-balancer-ssl-negotiation-policy");
/// Whether TLS goes on to the targets.
pub const BACKEND_PROTOCOL: &str = key!("aws-load-balancer-backend-protocol");
/// ALPN policy of TLS listeners.
pub const ALPN_POLICY: &str = key!("aws-load-balancer-alpn-policy");
/// Attributes of one listener; the key goes on with its protocol and port.
pub const LISTENER_ATTRIBUTES: &str = key!("aws-load-balancer-listener-attributes.");
/// Whether TCP and UDP may share a port.
pub const TCP_UDP_LISTENER: &str = key!("aws-load-balancer-enable-tcp-udp-listener");
/// QUIC, which weir does not have.
pub const QUIC_PORTS: &str = key!("aws-load-balancer-quic-enabled-ports");
/// Weighted actions, which weir does not have.
pub const ACTIONS: &str = key!("actions.");
/// Attributes of all target groups.
pub const TARGET_GROUP_ATTRIBUTES: &str = key!("aws-load-balancer-target-group-attributes");
/// Attributes of one target group; the key goes on with its port.
pub const TARGET_GROUP_ATTRIBUTES_OF: &str = key!("aws-load-balancer-target-group-attributes.");
/// PROXY protocol on all target groups.
pub const PROXY_PROTOCOL: &str = key!("aws-load-balancer-proxy-protocol");
/// PROXY protocol on some target groups.
pub const PROXY_PROTOCOL_PORTS: &str = key!("aws-load-balancer-proxy-protocol-per-target-group");
/// Protocol of health checks.
pub const HEALTH_PROTOCOL: &str = key!("aws-load-balancer-healthcheck-protocol");
/// Port of health checks.
pub const HEALTH_PORT: &str = key!("aws-load-balancer-healthcheck-port");
/// Path of health checks.
pub const HEALTH_PATH: &str = key!("aws-load-balancer-healthcheck-path");
/// HTTP status codes of a good answer.
pub const HEALTH_CODES: &str = key!("aws-load-balancer-healthcheck-success-codes");
/// Seconds between health checks.
pub const HEALTH_INTERVAL: &str = key!("aws-load-balancer-healthcheck-interval");
/// Seconds a health check may take.
pub const HEALTH_TIMEOUT: &str = key!("aws-load-balancer-healthcheck-timeout");
/// Good checks that make a target healthy.
pub const HEALTHY_THRESHOLD: &str = key!("aws-load-balancer-healthcheck-healthy-threshold");
/// Bad checks that make a target unhealthy.
pub const UNHEALTHY_THRESHOLD: &str = key!("aws-load-balancer-healthcheck-unhealthy-threshold");
/// Labels of the nodes that may be targets.
pub const TARGET_NODE_LABELS: &str = key!("aws-load-balancer-target-node-labels");
/// Target groups that several clusters share, which weir does not have.
pub const MULTI_CLUSTER: &str = key!("aws-load-balancer-multi-cluster-target-group");
/// Attributes of the load balancer.
pub const ATTRIBUTES: &str = key!("aws-load-balancer-attributes");
/// Whether a zone's node of the load balancer sends to targets of other zones.
pub const CROSS_ZONE: &str = key!("aws-load-balancer-cross-zone-load-balancing-enabled");
/// Whether access logs are written.
pub const ACCESS_LOG: &str = key!("aws-load-balancer-access-log-enabled");
/// Bucket of access logs.
pub const ACCESS_LOG_BUCKET: &str = key!("aws-load-balancer-access-log-s3-bucket-name");
/// Prefix of access logs in their bucket.
pub const ACCESS_LOG_PREFIX: &str = key!("aws-load-balancer-access-log-s3-bucket-prefix");

/// What weir does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its value is parsed and takes effect.
    Honoured,
    /// Its value has no effect; the sentence says so in a warning.
    Ignored(&'static str),
    /// A value other than the default is refused.
    Refused,
}

/// How a change of the value reaches a load balancer that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// In place.
    InPlace,
    /// The listener is changed in place.
    Listener,
    /// A new target group takes over, then the old one goes.
    TargetGroup,
    /// Another load balancer, with another DNS name, takes over.
    Replace,
    /// Refused; what is running stays.
    Never,
    /// It has no effect in AWS.
    Nothing,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The key, whole. One that ends in a dot is the beginning of a family of keys that end in a port, or in a protocol
    /// and a port.
    pub key: &'static str,
    /// Grammar or allowed values, for people.
    pub value: &'static str,
    /// What holds where the key is absent or empty.
    pub default: &'static str,
    /// API operation and field that the value reaches.
    pub effect: &'static str,
    /// How a change is applied.
    pub change: Change,
    /// What weir does with it.
    pub answer: Answer,
}

impl Row {
    /// Whether an annotation with this key is the row's.
    pub fn covers(&self, key: &str) -> bool {
        if self.key.ends_with('.') { key.starts_with(self.key) } else { key == self.key }
    }
}

const fn row(
    key: &'static str,
    value: &'static str,
    default: &'static str,
    effect: &'static str,
    change: Change,
    answer: Answer,
) -> Row {
    Row { key, value, default, effect, change, answer }
}

/// Every key that the AWS Load Balancer Controller or AWS's cloud provider reads of a Service.
#[rustfmt::skip] // A row a line.
pub const TABLE: &[Row] = &[
    row(TYPE, "`nlb`, `external` or `nlb-ip`", "", "none: the class decides", Change::Nothing, Answer::Honoured),
    row(TARGET_TYPE, "`instance`", "`instance`", "CreateTargetGroup·TargetType", Change::Never, Answer::Refused),
    row(NAME, "1 to 32 letters, digits and hyphens", "generated", "CreateLoadBalancer·Name", Change::Never, Answer::Honoured),
    row(SCHEME, "`internal` or `internet-facing`", "`internet-facing` (`--default-scheme`)", "CreateLoadBalancer·Scheme", Change::Replace, Answer::Honoured),
    row(INTERNAL, "boolean; an older spelling of aws-load-balancer-scheme", "", "CreateLoadBalancer·Scheme", Change::Replace, Answer::Honoured),
    row(IP_ADDRESS_TYPE, "`ipv4` or `dualstack`", "`ipv4`", "CreateLoadBalancer, SetIpAddressType", Change::InPlace, Answer::Honoured),
    row(SUBNETS, "list of subnet ids or `Name` tags", "discovered", "CreateLoadBalancer, SetSubnets", Change::InPlace, Answer::Honoured),
    row(EIP_ALLOCATIONS, "list of allocation ids, one per subnet", "", "SubnetMappings·AllocationId", Change::Never, Answer::Honoured),
    row(PRIVATE_IPV4_ADDRESSES, "list of addresses, one per subnet", "", "SubnetMappings·PrivateIPv4Address", Change::Never, Answer::Honoured),
    row(IPV6_ADDRESSES, "list of addresses, one per subnet", "", "SubnetMappings·IPv6Address", Change::Never, Answer::Honoured),
    row(SOURCE_NAT, "`on` or `off`", "`off`", "CreateLoadBalancer, SetSubnets·EnablePrefixForIpv6SourceNat", Change::InPlace, Answer::Honoured),
    row(SOURCE_NAT_PREFIXES, "list of `auto_assigned` or /80 prefixes, one per subnet", "`auto_assigned`", "SubnetMappings·SourceNatIpv6Prefix", Change::InPlace, Answer::Honoured),
    row(ATTRIBUTES, "map; `secondary_ips.auto_assigned.per_subnet` is raised and never lowered", "AWS's defaults", "ModifyLoadBalancerAttributes", Change::InPlace, Answer::Honoured),
    row(CROSS_ZONE, "boolean", "`false`", "ModifyLoadBalancerAttributes", Change::InPlace, Answer::Honoured),
    row(ACCESS_LOG, "boolean", "`false`", "ModifyLoadBalancerAttributes", Change::InPlace, Answer::Honoured),
    row(ACCESS_LOG_BUCKET, "name of a bucket", "", "ModifyLoadBalancerAttributes", Change::InPlace, Answer::Honoured),
    row(ACCESS_LOG_PREFIX, "prefix in the bucket", "", "ModifyLoadBalancerAttributes", Change::InPlace, Answer::Honoured),
    row(CAPACITY, "`CapacityUnits=<number>`", "`CapacityUnits=0`", "ModifyCapacityReservation", Change::InPlace, Answer::Honoured),
    row(SSL_CERT, "list of certificate ARNs; the first is the default", "no TLS", "CreateListener·Certificates, AddListenerCertificates", Change::Listener, Answer::Honoured),
    row(SSL_PORTS, "list of port names or numbers, or `*`", "all TCP ports", "CreateListener·Protocol", Change::Listener, Answer::Honoured),
    row(SSL_POLICY, "name of a security policy", "`ELBSecurityPolicy-TLS13-1-2-2021-06`", "CreateListener·SslPolicy", Change::Listener, Answer::Honoured),
    row(BACKEND_PROTOCOL, "`tcp` or `ssl`", "`tcp`", "CreateTargetGroup·Protocol", Change::TargetGroup, Answer::Honoured),
    row(ALPN_POLICY, "`None`, `HTTP1Only`, `HTTP2Only`, `HTTP2Optional` or `HTTP2Preferred`", "`None`", "CreateListener·AlpnPolicy", Change::Listener, Answer::Honoured),
    row(LISTENER_ATTRIBUTES, "map; the key ends in `<PROTOCOL>-<port>`", "AWS's defaults", "ModifyListenerAttributes", Change::InPlace, Answer::Honoured),
    row(TCP_UDP_LISTENER, "boolean", "`true`", "CreateListener·Protocol", Change::Listener, Answer::Honoured),
    row(QUIC_PORTS, "not supported", "", "none", Change::Nothing, Answer::Refused),
    row(ACTIONS, "not supported", "", "none", Change::Nothing, Answer::Refused),
    row(TARGET_GROUP_ATTRIBUTES, "map", "AWS's defaults", "ModifyTargetGroupAttributes", Change::InPlace, Answer::Honoured),
    row(TARGET_GROUP_ATTRIBUTES_OF, "map; the key ends in a port of the Service", "those for all ports", "ModifyTargetGroupAttributes", Change::InPlace, Answer::Honoured),
    row(PROXY_PROTOCOL, "`*`", "off", "ModifyTargetGroupAttributes", Change::InPlace, Answer::Honoured),
    row(PROXY_PROTOCOL_PORTS, "list of port numbers", "", "ModifyTargetGroupAttributes", Change::InPlace, Answer::Honoured),
    row(HEALTH_PROTOCOL, "`tcp`, `http` or `https`", "`http`; with another port than the node's, and no path, `tcp`", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(HEALTH_PORT, "`traffic-port`, a number, or the name of a port of the Service", "10256; under policy Local the healthCheckNodePort; with a protocol or path alone, `traffic-port`", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(HEALTH_PATH, "path that begins with `/`", "`/healthz`; with another port than the node's, `/`", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(HEALTH_CODES, "codes or ranges between 200 and 599", "`200-399`", "CreateTargetGroup, ModifyTargetGroup·Matcher", Change::InPlace, Answer::Honoured),
    row(HEALTH_INTERVAL, "5 to 300 seconds", "10", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(HEALTH_TIMEOUT, "2 to 120 seconds", "6", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(HEALTHY_THRESHOLD, "2 to 10", "2", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(UNHEALTHY_THRESHOLD, "2 to 10", "2", "CreateTargetGroup, ModifyTargetGroup", Change::InPlace, Answer::Honoured),
    row(TARGET_NODE_LABELS, "map of node labels, all of which a node must have", "all eligible nodes", "RegisterTargets", Change::TargetGroup, Answer::Honoured),
    row(MULTI_CLUSTER, "`false`", "`false`", "none", Change::Nothing, Answer::Refused),
    row(SOURCE_RANGES, "list of CIDR blocks", "`0.0.0.0/0`; with dualstack also `::/0`", "AuthorizeSecurityGroupIngress", Change::InPlace, Answer::Honoured),
    row(PREFIX_LISTS, "list of prefix list ids", "", "AuthorizeSecurityGroupIngress·PrefixListIds", Change::InPlace, Answer::Honoured),
    row(SECURITY_GROUPS, "list of group ids or `Name` tags", "a group of the Service's own", "CreateLoadBalancer, SetSecurityGroups", Change::InPlace, Answer::Honoured),
    row(MANAGE_BACKEND_RULES, "boolean", "`true`; with own groups `false`", "AuthorizeSecurityGroupIngress", Change::InPlace, Answer::Honoured),
    row(PRIVATE_LINK_RULES, "`on` or `off`", "`on`", "SetSecurityGroups", Change::InPlace, Answer::Honoured),
    row(ICMP, "`on` or `off`", "`off`", "AuthorizeSecurityGroupIngress", Change::InPlace, Answer::Honoured),
    row(NO_SECURITY_GROUPS, "`false`", "`false`", "none", Change::Never, Answer::Refused),
    row(RESOURCE_TAGS, "map", "", "AddTags, RemoveTags, CreateTags, DeleteTags", Change::InPlace, Answer::Honoured),
    row(key!("aws-load-balancer-access-log-emit-interval"), "any", "", "none", Change::Nothing, Answer::Ignored("applies to Classic load balancers only")),
    row(key!("aws-load-balancer-connection-draining-enabled"), "any", "", "none", Change::Nothing, Answer::Ignored("applies to Classic load balancers only")),
    row(key!("aws-load-balancer-connection-draining-timeout"), "any", "", "none", Change::Nothing, Answer::Ignored("applies to Classic load balancers only")),
    row(key!("aws-load-balancer-connection-idle-timeout"), "any", "", "none", Change::Nothing, Answer::Ignored("applies to Classic load balancers only; see aws-load-balancer-listener-attributes")),
    row(key!("aws-load-balancer-extra-security-groups"), "any", "", "none", Change::Nothing, Answer::Ignored("applies to Classic load balancers only")),
];
