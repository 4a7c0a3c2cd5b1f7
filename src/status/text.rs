//! Pure: trees as lines for people.

use std::fmt::Write as _;

use super::tree::{BalancerTree, ListenerTree, SourceTree, State, TargetGroupTree, Tree};

/// A line with the lines below it.
struct Line {
    text: String,
    below: Vec<Line>,
}

impl Line {
    fn new(text: impl Into<String>, below: Vec<Self>) -> Self {
        Self { text: text.into(), below }
    }

    fn leaf(text: impl Into<String>) -> Self {
        Self::new(text, vec![])
    }
}

/// Trees for people.
pub fn text(trees: &[Tree]) -> String {
    if trees.is_empty() {
        return "weir looks after no Service\n".into();
    }
    let mut text = String::new();
    for tree in trees {
        let line = service(tree);
        // Writing into a String does not fail.
        let _ = writeln!(text, "{}", line.text);
        draw(&line.below, "", &mut text);
        text.push('\n');
    }
    text
}

fn draw(lines: &[Line], indent: &str, text: &mut String) {
    for (index, line) in lines.iter().enumerate() {
        let (branch, below) = if index + 1 == lines.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let _ = writeln!(text, "{indent}{branch}{}", line.text);
        draw(&line.below, &format!("{indent}{below}"), text);
    }
}

fn service(tree: &Tree) -> Line {
    let state = match tree.state {
        State::Ready => "ready",
        State::Pending => "pending",
        State::Refused => "refused",
        State::Deleting => "being deleted",
        State::NotOurs => "not weir's",
    };
    let hostname = tree.hostname.as_ref().map(|hostname| format!("  {hostname}")).unwrap_or_default();
    let mut below: Vec<_> = tree.words.iter().map(Line::leaf).collect();
    below.extend(tree.load_balancers.iter().map(balancer));
    below.extend(tree.idle_target_groups.iter().map(|group| {
        let mut line = target_group(group);
        line.text = format!("no listener leads to {}", line.text);
        line
    }));
    Line::new(format!("Service {}  {state}{hostname}", tree.service), below)
}

fn balancer(balancer: &BalancerTree) -> Line {
    let reason = balancer.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let zones = balancer.zones.keys().cloned().collect::<Vec<_>>().join(", ");
    let text =
        format!("Network Load Balancer {}  {}{reason}, {}, {zones}", balancer.name, balancer.state, balancer.scheme);
    let mut below: Vec<_> = balancer.listeners.iter().map(listener).collect();
    if below.is_empty() {
        below.push(Line::leaf("it has no listener"));
    }
    Line::new(text, below)
}

fn listener(listener: &ListenerTree) -> Line {
    let below = match &listener.target_group {
        Some(group) => vec![target_group(group)],
        None => vec![Line::leaf("leads to no target group of this Service")],
    };
    Line::new(format!("listener {} {}", listener.protocol, listener.port), below)
}

fn target_group(group: &TargetGroupTree) -> Line {
    let text = format!(
        "target group {}  {} of {} healthy, NodePort {}, checked by {}",
        group.name, group.healthy, group.total, group.node_port, group.health_check
    );
    let mut below: Vec<_> = group.sources.iter().map(source).collect();
    if group.total == 0 && below.is_empty() {
        below.push(Line::leaf("it has no target"));
    }
    if !group.missing.is_empty() {
        below.push(Line::leaf(format!("no targets yet: {}", list(&group.missing))));
    }
    Line::new(text, below)
}

fn source(source: &SourceTree) -> Line {
    let name = source.auto_scaling_group.as_ref().map(|name| format!("Auto Scaling group {name}"));
    let how = match (&name, source.attachment) {
        (Some(name), Some("added")) => format!("{name}, attached"),
        (Some(name), Some(state)) => format!("{name}, {state}"),
        (Some(name), None) => format!("registered one by one: nodes of {name}"),
        (None, _) => "registered one by one: nodes in no Auto Scaling group".to_owned(),
    };
    let because = source.because.map(|because| format!(", since {because}")).unwrap_or_default();
    let sick = source.targets.iter().filter(|target| target.state != "healthy");
    let below = sick.map(|target| {
        let node = target.node.as_ref().map(|node| format!(" {node}")).unwrap_or_default();
        let reason = target.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        Line::leaf(format!("{}{node}  {}{reason}", target.instance, target.state))
    });
    Line::new(format!("{how}{because}  {} of {} healthy", source.healthy, source.total), below.collect())
}

/// The first few names.
fn list(names: &[String]) -> String {
    let few = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{few} and {} more", names.len() - 5) } else { few }
}
