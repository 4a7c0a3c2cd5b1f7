//! The reasons of Events: every one that weir publishes, with what it means. `docs/events.md` is written from here.

macro_rules! reasons {
    ($($(#[doc = $meaning:literal])+ $name:ident: $about:ident $kind:ident,)+) => {
        /// Why an Event was published.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// PascalCase, as people see it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// The kind of object the Event is about, whether it is Normal or a Warning, and what it means.
            pub const fn meaning(self) -> (&'static str, &'static str, &'static str) {
                match self {
                    $(Self::$name => (stringify!($about), stringify!($kind), concat!($($meaning),+).trim_ascii()),)+
                }
            }
        }
    };
}

reasons! {
    /// The load balancer can be used; the note has its name in the DNS.
    LoadBalancerReady: Service Normal,
    /// What an earlier warning told of is over, and all that the Service asks for is in place.
    Recovered: Service Normal,
    /// Something must happen before the next step; the note says what. No error.
    Waiting: Service Normal,
    /// The load balancer and all that belongs to it is gone.
    LoadBalancerDeleted: Service Normal,
    /// The Service cannot be served as it is written; the note names the field, its value and what would be right. It
    /// keeps what it has.
    InvalidConfiguration: Service Warning,
    /// Some of what the Service says has no effect; the note names it.
    ConfigurationIgnored: Service Warning,
    /// No subnet can be used, or the VPC is not known; the note has every subnet and why it fell out.
    NetworkNotUsable: Service Warning,
    /// A listener that the Service does not ask for was made by somebody else, and is taken away.
    ListenerRemoved: Service Normal,
    /// Nodes carry several security groups that could take the rules for load balancers; the note has the one chosen.
    NodeSecurityGroupAmbiguous: Service Warning,
    /// Subnets of the load balancer change, for which a zone goes for a moment.
    SubnetsChanging: Service Normal,
    /// Somebody undoes what weir writes; the note says what, and weir does it more and more seldom.
    Contested: Service Warning,
    /// Nodes are in a zone in which the load balancer has no subnet, so that they get no traffic.
    ZoneWithoutSubnet: Service Warning,
    /// The load balancer keeps more secondary addresses than the Service asks for, since AWS never takes one back; the
    /// note has both numbers.
    SecondaryAddressesKept: Service Warning,
    /// A change cannot be made without an interruption; the note says which.
    Interruption: Service Warning,
    /// AWS could not set the load balancer up; the note has its reason.
    LoadBalancerFailed: Service Warning,
    /// The Auto Scaling group has no slot left for a target group: its nodes are registered one by one.
    AutoScalingGroupFull: Service Warning,
    /// The Auto Scaling group replaces nodes that a target group reports unhealthy, so nothing is attached to it.
    AutoScalingGroupUsesElbHealth: Service Warning,
    /// The Auto Scaling group takes no target group for now; the note has AWS's words.
    AutoScalingGroupRefuses: Service Warning,
    /// Somebody else detaches this Service's target group again and again.
    AttachmentRemovedByOthers: Service Warning,
    /// AWS takes no more targets for the load balancer; those there are have been shared out among the Service's ports.
    TargetQuotaUsedUp: Service Warning,
    /// No node can be a target, so the load balancer has none.
    NoTargetNode: Service Warning,
    /// AWS does not know something that weir made or was told of.
    AwsResourceMissing: Service Warning,
    /// Something of that name exists in AWS, and is not this cluster's.
    AwsResourceExists: Service Warning,
    /// AWS answers that there are too many calls. It is tried again, more and more seldom.
    AwsThrottled: Service Warning,
    /// The controller's IAM role lacks a permission; the note names the action and the resource.
    AwsAccessDenied: Service Warning,
    /// AWS does not know the controller: it has no credentials, or they have expired or are not accepted; the note has
    /// the reason.
    AwsCredentialsInvalid: Service Warning,
    /// A quota of the AWS account is used up; the note has AWS's words.
    AwsQuotaExceeded: Service Warning,
    /// Something else must happen in AWS first, and has not for a while.
    AwsConflict: Service Warning,
    /// AWS does not take the request as it is; the note has AWS's words.
    AwsRequestRefused: Service Warning,
    /// AWS cannot be reached, or answers with errors of its own.
    AwsUnavailable: Service Warning,
    /// The Node's spec.providerID names no EC2 instance, so it can be no target.
    InvalidProviderID: Node Warning,
    /// AWS does not take the Node's instance as a target, and has not for two minutes; the note has its words.
    TargetRefused: Node Warning,
    /// A node cannot listen on the Service's healthCheckNodePort; from `weir node`, under the name kube-proxy gives it.
    FailedToStartServiceHealthcheck: Service Warning,
}
