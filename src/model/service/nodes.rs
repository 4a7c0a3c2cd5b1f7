//! What a Service says of its nodes.

use crate::model::annotation::{self, Annotations, Problem};
use crate::model::node::Labels;

/// Longest value of a label, and longest name in its key (Kubernetes, `validation.IsQualifiedName`).
const LABEL_LIMIT: usize = 63;
/// Longest prefix of a label's key.
const PREFIX_LIMIT: usize = 253;

pub(super) fn parse_node_labels(annotations: Annotations<'_>) -> Result<Labels, Problem> {
    let key = annotation::TARGET_NODE_LABELS;
    let labels = annotations.map(key)?;
    let wrong = |what: String| {
        let text = annotations.text(key).unwrap_or_default();
        Err(Problem::new(key, text, what, "labels of nodes, as in key=value,other=value"))
    };
    for (name, value) in &labels {
        // No node could ever have it, so it is a slip and not a wait.
        if !is_label_key(name) {
            return wrong(format!("has the key {name:?}, which is no label's"));
        }
        if !value.is_empty() && !is_label_text(value) {
            return wrong(format!("has the value {value:?}, which is no label's"));
        }
    }
    Ok(labels)
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        None => is_label_text(key),
        Some((prefix, name)) => {
            let legal = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || b"-.".contains(&letter);
            !prefix.is_empty() && prefix.len() <= PREFIX_LIMIT && prefix.bytes().all(legal) && is_label_text(name)
        }
    }
}

fn is_label_text(text: &str) -> bool {
    let edge = |letter: Option<u8>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let legal = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.".contains(&letter);
    text.len() <= LABEL_LIMIT && text.bytes().all(legal) && edge(text.bytes().next()) && edge(text.bytes().last())
}
