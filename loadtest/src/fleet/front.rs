//! What stands before a fleet and decides which worker serves: one URL, and the processes behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::Fleet;
use crate::stack::{
    Binaries, Envoy, Gateway, GatewaySpec, Process, Silent, Stack, StackOptions, Template,
};
use crate::usage::Usage;

/// What our own stack can be run as, in `loadtest simulate`'s words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Envoy alone, each worker in turn.
    RoundRobin,
    /// epp without a configuration.
    FieldDefault,
    /// `epp --policy expected-ttft`.
    ExpectedTtft,
    /// `epp --config-file`.
    File(PathBuf),
}

impl Policy {
    /// Of its name; `None` where it is none of ours.
    pub(crate) fn named(name: &str) -> Option<Policy> {
        Some(match name {
            "round-robin" => Policy::RoundRobin,
            "field-default" => Policy::FieldDefault,
            "expected-ttft" => Policy::ExpectedTtft,
            _ => Policy::File(PathBuf::from(name.strip_prefix("file:")?)),
        })
    }

    /// What epp is started with; `None` where there is no epp.
    fn flags(&self) -> Option<Vec<String>> {
        match self {
            Policy::RoundRobin => None,
            Policy::FieldDefault => Some(Vec::new()),
            Policy::ExpectedTtft => Some(vec!["--policy=expected-ttft".to_owned()]),
            Policy::File(path) => Some(vec![format!("--config-file={}", path.display())]),
        }
    }
}

/// See the module. Dropping it kills its processes.
#[derive(Debug)]
pub(crate) enum Front {
    Envoy(Box<Gateway>),
    WithEpp(Box<Stack>),
    Router { process: Process, url: String },
}

impl Front {
    /// Our own stack before `fleet`. Returns when it can be asked.
    pub(crate) async fn start(
        policy: &Policy,
        fleet: &Fleet,
        envoy: &Envoy,
        binaries: &Binaries,
    ) -> Result<Front> {
        let workers = fleet.addresses();
        let Some(flags) = policy.flags() else {
            let spec = GatewaySpec {
                envoy,
                template: Template::RoundRobin,
                watch: crate::stack::Watch::default(),
                // The template knows of no epp.
                epp: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)),
                workers: &workers,
                options: &StackOptions::new(),
                port: None,
            };
            let gateway = Gateway::spawn(spec, fleet.folder(), &fleet.http).await?;
            gateway.until_ready().await?;
            return Ok(Front::Envoy(Box::new(gateway)));
        };
        let options = StackOptions::new().workers(0);
        let options = workers
            .iter()
            .fold(options, |options, address| options.endpoint(*address));
        let options = flags.into_iter().fold(options, StackOptions::epp_flag);
        let stack = Stack::start_with(options, envoy.clone(), binaries, &Silent).await?;
        stack.epp().until_ready(workers.len()).await?;
        Ok(Front::WithEpp(Box::new(stack)))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Front::Envoy(gateway) => gateway.url(),
            Front::WithEpp(stack) => stack.gateway().url(),
            Front::Router { url, .. } => url.clone(),
        }
    }

    /// What its processes have used so far.
    pub(crate) fn usage(&self) -> Usage {
        let ids: Vec<i32> = self.processes().map(Process::id).collect();
        Usage::of(&ids)
    }

    /// Fails when a process has ended meanwhile: what was measured then says nothing.
    pub(crate) fn check_alive(&self) -> Result<()> {
        for process in self.processes() {
            ensure!(
                process.exit_status().is_none(),
                "{} has ended\n{}",
                process.name(),
                process.log_tail()
            );
        }
        Ok(())
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let (first, second) = match self {
            Front::Envoy(gateway) => (gateway.process(), None),
            Front::WithEpp(stack) => (stack.gateway().process(), Some(stack.epp().process())),
            Front::Router { process, .. } => (process, None),
        };
        std::iter::once(first).chain(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_policies_have_simulates_names() {
        assert_eq!(Policy::named("expected-ttft"), Some(Policy::ExpectedTtft));
        let file = Policy::named("file:a/b.yaml");
        assert_eq!(file, Some(Policy::File("a/b.yaml".into())));
        assert_eq!(Policy::named("sglang-router"), None);
        assert_eq!(Policy::RoundRobin.flags(), None);
    }
}
