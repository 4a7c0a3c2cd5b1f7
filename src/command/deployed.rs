//! The controller's own settings, as its Deployment gives them: what the commands for people go by.

use anyhow::bail;
use clap::{CommandFactory, Parser};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Container;
use kube::Api;

use super::settings::Place;
use crate::settings::{Cli, Command, Controller};
use crate::telemetry::chain;

/// Name of the controller's Deployment and of its ServiceAccount.
pub const CONTROLLER: &str = "weir-controller";

/// The controller's Deployment, if there is one.
///
/// # Errors
/// As of the API server.
pub async fn find(client: &kube::Client, namespace: &str) -> kube::Result<Option<Deployment>> {
    Api::<Deployment>::namespaced(client.clone(), namespace).get_opt(CONTROLLER).await
}

/// The settings that a container of weir gives the process in it, flags before variables. `None` for a container that
/// runs something else than this role.
///
/// # Errors
/// What the process itself would say of its flags.
pub fn read(container: &Container, role: &str) -> Option<Result<Command, String>> {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let words: Vec<_> = words.skip_while(|word| *word != role).map(|word| expand(word, container)).collect();
    if words.is_empty() {
        return None;
    }
    let mut line = vec!["weir".to_owned()];
    line.extend(words);
    for (flag, value) in variables(container, role) {
        if !line.iter().any(|word| *word == flag || word.starts_with(&format!("{flag}="))) {
            line.push(value.map_or(flag.clone(), |value| format!("{flag}={value}")));
        }
    }
    Some(Cli::try_parse_from(line).map(|cli| cli.command).map_err(|error| first_line(&error.to_string())))
}

/// Flags that variables of the container stand for, with their values if they take any.
fn variables(container: &Container, role: &str) -> Vec<(String, Option<String>)> {
    let cli = Cli::command();
    let flags = cli.find_subcommand(role).into_iter().flat_map(clap::Command::get_arguments);
    let value = |name: &str| container.env.iter().flatten().find(|each| each.name == name)?.value.clone();
    flags
        .filter_map(|flag| {
            let value = expand(&value(flag.get_env()?.to_str()?)?, container);
            let name = format!("--{}", flag.get_long()?);
            match value.as_str() {
                // A switch is given or not. It takes no other words, and says so if it is given one.
                "true" if !flag.get_action().takes_values() => Some((name, None)),
                "false" if !flag.get_action().takes_values() => None,
                _ => Some((name, Some(value))),
            }
        })
        .collect()
}

/// `$(NAME)` in a container's command, as the kubelet replaces it where it knows the value.
fn expand(word: &str, container: &Container) -> String {
    container.env.iter().flatten().fold(word.to_owned(), |word, variable| match &variable.value {
        Some(value) => word.replace(&format!("$({})", variable.name), value),
        None => word,
    })
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// The settings of the controller in a Deployment. `None` where none of its containers is a controller of weir.
///
/// # Errors
/// What the process itself would say of its flags.
pub fn controller(deployment: &Deployment) -> Option<Result<Controller, String>> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let found = pod.containers.iter().find_map(|container| read(container, "controller"))?;
    Some(found.and_then(|command| match command {
        Command::Controller(settings) => Ok(settings),
        other => Err(format!("{other:?} is no controller")),
    }))
}

/// The controller's settings, as far as they can be known here. Standard error hears why those of the Deployment are not.
///
/// # Errors
/// Nobody says the cluster's name.
pub async fn known(client: &kube::Client, place: &Place) -> anyhow::Result<Controller> {
    let deployed = told(find(client, &place.namespace).await);
    let name = format!("Deployment {}/{CONTROLLER}", place.namespace);
    let found = settings(place, deployed.as_ref().ok());
    match (found, deployed) {
        (Some(settings), Ok(_)) => Ok(settings),
        (Some(settings), Err(why)) => {
            super::tell(&format!("the controller's settings are taken to be the defaults: {name} {why}"));
            Ok(settings)
        }
        (None, deployed) => {
            let why = deployed.err().unwrap_or_default();
            bail!("--cluster-name: not given, and no Deployment tells it: {name} {why}")
        }
    }
}

/// What a Deployment tells.
///
/// # Errors
/// Why it tells nothing, to be read after its name.
fn told(found: kube::Result<Option<Deployment>>) -> Result<Controller, String> {
    match found {
        Ok(None) => Err("does not exist".to_owned()),
        Ok(Some(deployment)) => match controller(&deployment) {
            None => Err("runs no controller of weir".to_owned()),
            Some(read) => read.map_err(|why| format!("has flags that this weir cannot read: {why}")),
        },
        Err(error) => Err(format!("cannot be read: {}", chain(&error))),
    }
}

/// The settings to go by: the deployed ones, else the defaults; with what was said on the command line. `None` if nobody
/// says the cluster's name.
pub fn settings(place: &Place, deployed: Option<&Controller>) -> Option<Controller> {
    let mut settings = match (deployed, &place.cluster_name) {
        (Some(deployed), _) => deployed.clone(),
        (None, Some(name)) => {
            let line = ["weir".to_owned(), "controller".to_owned(), format!("--cluster-name={name}")];
            match Cli::try_parse_from(line).ok()?.command {
                Command::Controller(defaults) => defaults,
                _ => return None,
            }
        }
        (None, None) => return None,
    };
    if let Some(name) = &place.cluster_name {
        settings.cluster_name.clone_from(name);
    }
    if place.region.is_some() {
        settings.region.clone_from(&place.region);
    }
    settings.namespace.clone_from(&place.namespace);
    Some(settings)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DeploymentSpec;
    use k8s_openapi::api::core::v1::{EnvVar, PodSpec, PodTemplateSpec};

    use super::*;

    fn container(words: &[&str], env: &[(&str, &str)]) -> Container {
        let args = words.iter().map(|word| (*word).to_owned()).collect();
        let variable = |(name, value): &(&str, &str)| EnvVar {
            name: (*name).to_owned(),
            value: Some((*value).to_owned()),
            ..EnvVar::default()
        };
        Container { args: Some(args), env: Some(env.iter().map(variable).collect()), ..Container::default() }
    }

    fn read_controller(words: &[&str], env: &[(&str, &str)]) -> Result<Controller, String> {
        match read(&container(words, env), "controller").unwrap() {
            Ok(Command::Controller(settings)) => Ok(settings),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn flags_variables_and_references_are_read_as_the_process_would() {
        let settings = read_controller(
            &["controller", "--cluster-name=$(CLUSTER)", "--health-port=10000"],
            &[("CLUSTER", "demo"), ("WEIR_HEALTH_PORT", "1"), ("WEIR_LOAD_BALANCER_CLASS", "example.com/x")],
        )
        .unwrap();
        assert_eq!(settings.cluster_name, "demo");
        assert_eq!(settings.health_port, 10000, "a flag before its variable");
        assert_eq!(settings.load_balancer_class, "example.com/x");
    }

    #[test]
    fn switches_have_variables_too() {
        let read =
            |value: &str| read_controller(&["controller", "--cluster-name=demo"], &[("WEIR_CLAIM_CLASSLESS", value)]);
        assert!(read("true").unwrap().claim_classless);
        assert!(!read("false").unwrap().claim_classless);
        assert!(read("perhaps").unwrap_err().contains("--claim-classless"));
    }

    #[test]
    fn whoever_tells_nothing_says_why() {
        assert_eq!(told(Ok(None)).unwrap_err(), "does not exist");
        let deployment = |container| Deployment {
            spec: Some(DeploymentSpec {
                template: PodTemplateSpec {
                    spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
                    ..PodTemplateSpec::default()
                },
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        let why = |words: &[&str]| told(Ok(Some(deployment(container(words, &[]))))).unwrap_err();
        assert_eq!(why(&["--metrics"]), "runs no controller of weir");
        let unread = why(&["controller", "--cluster-name=demo", "--from-another-version"]);
        assert!(unread.contains("cannot read: unexpected argument '--from-another-version'"), "{unread}");
    }

    #[test]
    fn what_the_process_would_refuse_is_told_in_its_words() {
        let error = read_controller(&["controller", "--cluster-name=demo", "--clasless"], &[]).unwrap_err();
        assert!(error.contains("--clasless"), "{error}");
        let none = container(&["--metrics"], &[]);
        assert!(read(&none, "controller").is_none(), "a sidecar");
    }

    #[test]
    fn the_command_line_goes_before_the_deployment() {
        let deployed = read_controller(&["controller", "--cluster-name=demo", "--region=eu-west-1"], &[]).unwrap();
        let place = |name: Option<&str>| Place {
            cluster_name: name.map(str::to_owned),
            region: None,
            namespace: "weir-system".to_owned(),
        };
        let named = settings(&place(Some("other")), Some(&deployed)).unwrap();
        assert_eq!((named.cluster_name.as_str(), named.region.as_deref()), ("other", Some("eu-west-1")));
        assert_eq!(settings(&place(None), Some(&deployed)).unwrap().cluster_name, "demo");
        assert!(settings(&place(None), None).is_none());
    }
}
