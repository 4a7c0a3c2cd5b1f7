//! The `ValidatingAdmissionPolicy` that says no at `kubectl apply`, in the words of the controller: written from the same
//! sentences, so that the two cannot differ. Only what CEL can judge from one annotation alone; the rest, and clusters
//! without the policy, are the controller's.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::*;
use crate::model::service::parse;

/// Set, the manifest is written anew.
const REWRITE: &str = "WEIR_REWRITE_GOLDEN";

/// One thing to say no to.
struct Check {
    key: &'static str,
    /// In CEL, of a `value` that is neither absent nor empty: when it is right.
    is_right: String,
    wrong: String,
    expected: String,
    /// A value that is wrong in this way.
    bad: &'static str,
}

fn check(key: &'static str, is_right: String, wrong: &str, expected: &str, bad: &'static str) -> Check {
    Check { key, is_right, wrong: wrong.to_owned(), expected: expected.to_owned(), bad }
}

fn flag(key: &'static str) -> Check {
    let is_right = "value.matches('^(1|t|T|true|True|TRUE|0|f|F|false|False|FALSE)$')".to_owned();
    check(key, is_right, "is no truth value", "true or false", "yes")
}

fn switch(key: &'static str) -> Check {
    check(key, "value in ['on', 'off']".to_owned(), "is neither on nor off", "on or off", "true")
}

fn word(key: &'static str, words: &[&str], wrong: &str, expected: &str) -> Check {
    let list: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    check(key, format!("value in [{}]", list.join(", ")), wrong, expected, "sideways")
}

fn number(key: &'static str, first: i32, last: i32) -> [Check; 2] {
    let expected = format!("{first} to {last}");
    let digits = "value.matches('^[+-]?[0-9]{1,18}$')";
    let number = "int(value.replace('+', ''))";
    let inside = format!("!{digits} || ({number} >= {first} && {number} <= {last})");
    [
        check(key, digits.to_owned(), "is no whole number", &expected, "ten"),
        check(key, inside, "is out of range", &expected, "-1"),
    ]
}

fn name_checks() -> Vec<Check> {
    let expected = "1 to 32 letters, digits and hyphens, no hyphen at either end, not beginning with internal-";
    let legal = "value.matches('^[A-Za-z0-9-]*$') && size(value) <= 32";
    let edge = format!("!({legal}) || !(value.startsWith('-') || value.endsWith('-'))");
    vec![
        check(NAME, edge, "begins or ends with a hyphen", expected, "order-"),
        check(
            NAME,
            format!("!({legal}) || value.endsWith('-') || !value.startsWith('internal-')"),
            "begins with \"internal-\"",
            expected,
            "internal-order",
        ),
    ]
}

/// Everything the policy says no to.
fn checks() -> Vec<Check> {
    let alpn = ["None", "HTTP1Only", "HTTP2Only", "HTTP2Optional", "HTTP2Preferred"];
    let health = "value.lowerAscii() in ['tcp', 'http', 'https']".to_owned();
    let not_true = "!(value in ['1', 't', 'T', 'true', 'True', 'TRUE'])";
    let groups = "asks for a load balancer without security groups, which could never get any later";
    let unsupported = "is not supported by this controller";
    let shared = "is not supported by this controller, which attaches target groups to Auto Scaling groups";
    let quic = "asks for QUIC, which is not supported by this controller";
    let policy = "the name of a security policy, such as ELBSecurityPolicy-TLS13-1-2-2021-06";
    let mut checks = vec![
        word(SCHEME, &["internal", "internet-facing"], "is an unknown scheme", "internal or internet-facing"),
        flag(INTERNAL),
        word(IP_ADDRESS_TYPE, &["ipv4", "dualstack"], "is an unknown IP address type", "ipv4 or dualstack"),
        flag(CROSS_ZONE),
        flag(ACCESS_LOG),
        flag(TCP_UDP_LISTENER),
        flag(MANAGE_BACKEND_RULES),
        flag(NO_SECURITY_GROUPS),
        check(NO_SECURITY_GROUPS, not_true.into(), groups, "false", "1"),
        switch(SOURCE_NAT),
        switch(PRIVATE_LINK_RULES),
        flag(MULTI_CLUSTER),
        check(MULTI_CLUSTER, not_true.into(), shared, "false", "true"),
        word(TARGET_TYPE, &["instance"], unsupported, "instance"),
        check(QUIC_PORTS, "false".into(), quic, "no such annotation", "443"),
        word(ALPN_POLICY, &alpn, "is unknown", &one_of(&alpn)),
        word(BACKEND_PROTOCOL, &["tcp", "ssl", "http", "https"], "is an unknown protocol", "tcp or ssl"),
        check(
            SSL_POLICY,
            "value.matches('^ELBSecurityPolicy-[A-Za-z0-9-]*$')".into(),
            "is no security policy",
            policy,
            "TLS 1.2",
        ),
        word(PROXY_PROTOCOL, &["*"], "is unknown", "*"),
        check(HEALTH_PROTOCOL, health, "is an unsupported health check protocol", "tcp, http or https", "udp"),
        check(
            HEALTH_PATH,
            "value.startsWith('/')".into(),
            "does not begin with \"/\"",
            "a path such as /healthz",
            "ready",
        ),
    ];
    checks.extend(name_checks());
    checks.extend(number(HEALTH_INTERVAL, 5, 300));
    checks.extend(number(HEALTH_TIMEOUT, 2, 120));
    checks.extend(number(HEALTHY_THRESHOLD, 2, 10));
    checks.extend(number(UNHEALTHY_THRESHOLD, 2, 10));
    checks
}

const HEAD: &str = "\
# Says no to a Service of weir's class whose annotations cannot be honoured, inside the API server and in the words of
# the controller, which says the same in an Event where this policy is absent. Written from the controller's own table
# (src/model/annotation/admission.rs); do not edit. Needs Kubernetes 1.30.
# A namespace in which nothing is to be refused carries the label weir.dev/validation: none.
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: weir-annotations
spec:
  # What cannot be judged is let through: the controller judges it again.
  failurePolicy: Ignore
  matchConstraints:
    resourceRules:
      - apiGroups: [\"\"]
        apiVersions: [\"v1\"]
        operations: [\"CREATE\", \"UPDATE\"]
        resources: [\"services\"]
  matchConditions:
    - name: is-ours
      expression: >-
        object.spec.type == 'LoadBalancer' &&
        object.spec.?loadBalancerClass.orValue('') == 'weir.dev/nlb'
    # A Service that was let through once can be deleted, lose its finalizer, or be labelled.
    - name: is-being-changed
      expression: >-
        !has(object.metadata.deletionTimestamp) && (oldObject == null ||
        object.metadata.?annotations.orValue({}) != oldObject.metadata.?annotations.orValue({}) ||
        oldObject.spec.?loadBalancerClass.orValue('') != 'weir.dev/nlb')
  variables:
    - name: given
      expression: object.metadata.?annotations.orValue({})
";

const TAIL: &str = "\
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: weir-annotations
spec:
  policyName: weir-annotations
  validationActions: [\"Deny\"]
  matchResources:
    namespaceSelector:
      matchExpressions:
        - key: weir.dev/validation
          operator: NotIn
          values: [\"none\"]
";

/// The variable that holds an annotation's value.
fn variable(key: &str) -> String {
    let name = key.trim_start_matches("service.beta.kubernetes.io/").trim_start_matches("aws-load-balancer-");
    name.replace('-', "_")
}

fn manifest() -> String {
    let mut text = HEAD.to_owned();
    let checks = checks();
    let keys: BTreeSet<_> = checks.iter().map(|check| check.key).collect();
    for key in keys {
        let name = variable(key);
        let _ = write!(text, "    - name: {name}\n      expression: variables.given[?'{key}'].orValue('').trim()\n");
    }
    text.push_str("  validations:\n");
    for check in checks {
        let value = format!("variables.{}", variable(check.key));
        let right = check.is_right.replace("value", &value);
        let _ = write!(
            text,
            "    - expression: >-\n        {value} == '' || {right}\n      messageExpression: >-\n        '{}: \"' + \
             {value} + '\" {}; expected {}'\n",
            check.key, check.wrong, check.expected,
        );
    }
    text + TAIL
}

#[test]
fn the_policy_is_written_from_the_sentences() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("manifests/base/policies/validation.yaml");
    let text = manifest();
    if std::env::var_os(REWRITE).is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &text).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap_or_default() == text, "set {REWRITE} to write {}", file.display());
}

#[test]
fn the_controller_says_the_same() {
    for check in checks() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "order", "annotations": {check.key: check.bad}},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
        }))
        .unwrap();
        let problems = parse(&service).expect_err("refused");
        let said = Problem::new(check.key, check.bad, check.wrong, check.expected);
        assert!(problems.contains(&said), "{said} is not among {problems:?}");
    }
}
