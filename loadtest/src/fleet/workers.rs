//! The workers of a fleet: `engine --backend sim`, each a process of its own.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::FleetOptions;
use crate::client::HttpClient;
use crate::stack::{Binaries, Folder, Progress, StackOptions, Worker, metric_sum, start_workers};
use crate::usage::Usage;

/// Counts the requests that a worker has answered.
const ANSWERED: &str = "vllm:request_success_total";

/// Workers that have just started. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    pub(crate) http: HttpClient,
    folder: Folder,
}

impl Fleet {
    /// Starts them all, cold. Returns when each answers.
    pub(crate) async fn start(
        options: &FleetOptions,
        binaries: &Binaries,
        progress: &dyn Progress,
    ) -> Result<Fleet> {
        let stack = StackOptions::new()
            .workers(usize::from(options.workers))
            .worker_flag("--backend=sim")
            .worker_flag(format!("--sim-model={}", options.model))
            .worker_flag(format!("--sim-gpu={}", options.gpu))
            .worker_flag(format!("--tensor-parallel-size={}", options.gpus))
            .worker_flag(format!("--sim-speedup={}", options.speedup))
            .worker_flag(format!("--block-size={}", options.block_size));
        let folder = Folder::create(&stack)?;
        let http = HttpClient::new();
        let workers = start_workers(&stack, binaries, folder.path(), &http, progress).await?;
        Ok(Fleet {
            workers,
            http,
            folder,
        })
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.workers.iter().map(Worker::address).collect()
    }

    /// For logs and configurations of what stands before it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How many requests each has answered. Counted by the workers, because not every router says who served.
    pub(crate) async fn answered(&self) -> Result<Vec<u64>> {
        let mut all = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let page = worker.metrics().await?;
            let count = metric_sum(&page, ANSWERED);
            let count = count.with_context(|| format!("{} shows no {ANSWERED}", worker.url()))?;
            all.push(count as u64);
        }
        Ok(all)
    }

    /// What all of them have used so far.
    pub(crate) fn usage(&self) -> Usage {
        let ids: Vec<i32> = self
            .workers
            .iter()
            .map(|worker| worker.process().id())
            .collect();
        Usage::of(&ids)
    }
}
