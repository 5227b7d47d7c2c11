//! Which endpoints a pool has: from flags, from a file, or from the file that the configuration's
//! `file-discovery` names.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use tracing::info;

use super::Task;
use crate::config::plugins;
use crate::config::{EndpointSource, PoolSettings};
use crate::fleet::data_layer::FileDiscovery;
use crate::fleet::discovery::file::{self, FileWatch};
use crate::fleet::discovery::static_list::parse_endpoints;
use crate::fleet::members::check_unique;
use crate::fleet::{EndpointSpec, Fleet};
use crate::pipeline::Policy;

/// Applies the endpoints that are known, and returns the task that follows the file, if there is
/// one.
pub(super) fn start(
    wanted: &PoolSettings,
    policy: &Policy,
    fleet: &Arc<Fleet>,
) -> anyhow::Result<Vec<Task>> {
    match &wanted.endpoints {
        EndpointSource::Static(texts) => {
            let endpoints = named(texts)?;
            let count = endpoints.len();
            fleet.apply(endpoints)?;
            info!(pool = wanted.name, endpoints = count, "endpoints named");
            Ok(Vec::new())
        }
        EndpointSource::File(path) => follow(path.clone(), fleet),
        EndpointSource::Configuration => {
            let discovery = configured(policy)?;
            let path = PathBuf::from(discovery.path);
            if discovery.watch_file {
                return follow(path, fleet);
            }
            fleet.apply(file::load(&path)?)?;
            Ok(Vec::new())
        }
    }
}

/// The endpoints of the command line's texts, or of a pools file's.
pub fn named(texts: &[String]) -> anyhow::Result<Vec<EndpointSpec>> {
    let mut endpoints = Vec::new();
    for text in texts {
        let parsed = parse_endpoints(text).with_context(|| format!("--endpoint {text}"))?;
        endpoints.extend(parsed);
    }
    check_unique(&endpoints).context("--endpoint")?;
    Ok(endpoints)
}

fn follow(path: PathBuf, fleet: &Arc<Fleet>) -> anyhow::Result<Vec<Task>> {
    let watch = FileWatch::start(path, Arc::clone(fleet))?;
    Ok(vec![Box::pin(watch.run())])
}

fn configured(policy: &Policy) -> anyhow::Result<FileDiscovery> {
    let place = policy.config.data_layer.discovery;
    let plugin = place.and_then(|place| policy.config.plugins.get(place));
    let Some(plugin) = plugin else {
        bail!(
            "no workers: name them with --endpoint IP:PORT or --endpoints-file PATH, or by \
             dataLayer.discovery in the configuration"
        );
    };
    plugins::read(&plugin.parameters).with_context(|| format!("plugin {:?}", plugin.name))
}
