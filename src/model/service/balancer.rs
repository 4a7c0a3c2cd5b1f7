//! What a Service says of its load balancer: scheme, name, subnets, tags.

use std::collections::BTreeSet;

use super::{Scheme, kept};
use crate::model::annotation::{self, Annotations, Problem};
use crate::model::attribute::{Attributes, Holder};
use crate::model::name::NAME_LIMIT;
use crate::model::ownership::{TAG_PREFIX, TAG_VALUE_LIMIT, Tags, encode_keys};

/// Tags of one ELB resource; weir needs five of them.
const USER_TAG_LIMIT: usize = 45;

pub(super) fn parse_scheme(annotations: Annotations<'_>) -> Result<Option<Scheme>, Problem> {
    let internal = annotations.flag(annotation::INTERNAL)?;
    let older = internal.map(|internal| if internal { Scheme::Internal } else { Scheme::InternetFacing });
    let scheme = match annotations.text(annotation::SCHEME) {
        None => return Ok(older),
        Some("internal") => Scheme::Internal,
        Some("internet-facing") => Scheme::InternetFacing,
        Some(other) => {
            let wrong = "is an unknown scheme";
            return Err(Problem::new(annotation::SCHEME, other, wrong, "internal or internet-facing"));
        }
    };
    match older {
        Some(older) if older != scheme => {
            let text = annotations.text(annotation::INTERNAL).unwrap_or_default();
            let wrong = format!("contradicts the scheme {scheme}");
            let expected = format!("one of the two, as in {}", annotation::SCHEME);
            Err(Problem::new(annotation::INTERNAL, text, wrong, expected))
        }
        _ => Ok(Some(scheme)),
    }
}

pub(super) fn parse_name(annotations: Annotations<'_>) -> Result<Option<String>, Problem> {
    let Some(name) = annotations.text(annotation::NAME) else { return Ok(None) };
    let wrong = if name.chars().count() > NAME_LIMIT {
        format!("is {} characters long", name.chars().count())
    } else if let Some(bad) = name.chars().find(|letter| !letter.is_ascii_alphanumeric() && *letter != '-') {
        format!("has the character {bad:?}")
    } else if name.starts_with('-') || name.ends_with('-') {
        "begins or ends with a hyphen".to_owned()
    } else if name.starts_with("internal-") {
        "begins with \"internal-\"".to_owned()
    } else {
        return Ok(Some(name.to_owned()));
    };
    let expected = "1 to 32 letters, digits and hyphens, no hyphen at either end, not beginning with internal-";
    Err(Problem::new(annotation::NAME, name, wrong, expected))
}

pub(super) fn parse_subnets(annotations: Annotations<'_>) -> Result<Vec<String>, Problem> {
    let expected = "subnet ids or values of their Name tags, each once, separated by commas";
    let list = annotations.list(annotation::SUBNETS, "subnet", expected)?;
    let text = annotations.text(annotation::SUBNETS).unwrap_or_default();
    let wrong = |what: String| Err(Problem::new(annotation::SUBNETS, text, what, expected));
    let mut seen = BTreeSet::new();
    for part in &list {
        let id = part.strip_prefix("subnet-");
        if id.is_some_and(|hex| hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return wrong(format!("has {part:?}, which is no subnet id"));
        }
        if !seen.insert(part) {
            return wrong(format!("has {part:?} twice"));
        }
    }
    Ok(list.into_iter().map(str::to_owned).collect())
}

pub(super) fn parse_tags(annotations: Annotations<'_>) -> Result<Tags, Problem> {
    let tags = annotations.map(annotation::RESOURCE_TAGS)?;
    let legal = |text: &str| text.chars().all(|letter| letter.is_alphanumeric() || " +-=._:/@".contains(letter));
    let mut wrong = None;
    for (key, value) in &tags {
        if key.to_ascii_lowercase().starts_with("aws:") {
            wrong = Some(format!("has the key {key:?}, which AWS reserves"));
        } else if key.starts_with(TAG_PREFIX) {
            wrong = Some(format!("has the key {key:?}, with which weir marks what it owns"));
        } else if key.chars().count() > 127 || value.chars().count() > TAG_VALUE_LIMIT {
            wrong = Some(format!("has the tag {key:?}, which is too long"));
        } else if !legal(key) || !legal(value) {
            wrong = Some(format!("has the tag {key:?} with a character that AWS does not take"));
        }
    }
    if tags.len() > USER_TAG_LIMIT {
        wrong = Some(format!("has {} tags", tags.len()));
    } else if encode_keys(tags.keys()).chars().count() > TAG_VALUE_LIMIT {
        wrong = Some(format!("has keys of more than {TAG_VALUE_LIMIT} characters in all"));
    }
    match wrong {
        None => Ok(tags),
        Some(wrong) => {
            let expected =
                "at most 45 tags; keys up to 127 and values up to 255 letters, digits, blanks and + - = . _ : / @";
            let text = annotations.text(annotation::RESOURCE_TAGS).unwrap_or_default();
            Err(Problem::new(annotation::RESOURCE_TAGS, text, wrong, expected))
        }
    }
}

/// Attributes of the load balancer, from the map and from the keys that stand for one of them.
pub(super) fn parse_attributes(annotations: Annotations<'_>, problems: &mut Vec<Problem>) -> Attributes {
    let mut asked = kept(annotations.map(annotation::ATTRIBUTES), problems);
    let text = annotations.text(annotation::ATTRIBUTES).unwrap_or_default();
    for (name, value) in &asked {
        if let Some((wrong, expected)) = Holder::Balancer(Scheme::InternetFacing).objection(name, value) {
            problems.push(Problem::new(annotation::ATTRIBUTES, text, wrong, expected));
        }
    }
    let flag = |key, problems: &mut Vec<_>| kept(annotations.flag(key), problems).map(|on| on.to_string());
    let text = |key| annotations.text(key).map(str::to_owned);
    let single = [
        (annotation::CROSS_ZONE, "load_balancing.cross_zone.enabled", flag(annotation::CROSS_ZONE, problems)),
        (annotation::ACCESS_LOG, LOGS, flag(annotation::ACCESS_LOG, problems)),
        (annotation::ACCESS_LOG_BUCKET, LOG_BUCKET, text(annotation::ACCESS_LOG_BUCKET)),
        (annotation::ACCESS_LOG_PREFIX, "access_logs.s3.prefix", text(annotation::ACCESS_LOG_PREFIX)),
    ];
    for (key, name, value) in single {
        let Some(value) = value else { continue };
        match asked.get(name).filter(|other| **other != value) {
            Some(other) => {
                let text = annotations.text(key).unwrap_or_default();
                let wrong = format!("contradicts {name}={other}");
                problems.push(Problem::new(
                    key,
                    text,
                    wrong,
                    format!("one of the two, as in {}", annotation::ATTRIBUTES),
                ));
            }
            None => drop(asked.insert(name.to_owned(), value)),
        }
    }
    let on = asked.get(LOGS).is_some_and(|value| value == "true");
    if on && asked.get(LOG_BUCKET).is_none_or(String::is_empty) {
        let key = if annotations.text(annotation::ACCESS_LOG).is_some() {
            annotation::ACCESS_LOG
        } else {
            annotation::ATTRIBUTES
        };
        let text = annotations.text(key).unwrap_or_default();
        let wrong = "turns access logs on without a bucket";
        problems.push(Problem::new(key, text, wrong, format!("a bucket, as in {}", annotation::ACCESS_LOG_BUCKET)));
    }
    asked
}

const LOGS: &str = "access_logs.s3.enabled";
const LOG_BUCKET: &str = "access_logs.s3.bucket";

/// Capacity units to reserve (ELB API, `MinimumLoadBalancerCapacity`); 0 reserves nothing.
pub(super) fn parse_capacity(annotations: Annotations<'_>) -> Result<i32, Problem> {
    const UNITS: &str = "CapacityUnits";
    let key = annotation::CAPACITY;
    let text = annotations.text(key).unwrap_or_default();
    let wrong = |what: String| Problem::new(key, text, what, format!("{UNITS}=<number>, where 0 reserves nothing"));
    let mut map = annotations.map(key)?;
    let units = map.remove(UNITS);
    if let Some((other, _)) = map.pop_first() {
        return Err(wrong(format!("has the key {other:?}")));
    }
    let Some(units) = units else { return Ok(0) };
    units.parse().ok().filter(|units| *units >= 0).ok_or_else(|| wrong(format!("has {units:?}, which is no number")))
}
