//! gRPC health, under the service names that gateways and kubelets ask for.
//!
//! Envoy health-checks the ext_proc cluster on the ext_proc port, Kubernetes probes the health
//! port; both get the same answers. `liveness` says that the process serves at all. The other names
//! say that requests may be sent here: they turn to SERVING when discovery has loaded a first list,
//! and back on shutdown, so that a gateway stops choosing this replica before it goes.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// Alive, whether or not requests are wanted.
pub const LIVENESS: &str = "liveness";

/// Names that follow readiness. The empty one is the server as a whole.
pub const READINESS: [&str; 3] = [
    "",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
];

/// Sets the answers; clones set the same ones.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Alive and not ready.
    pub async fn new() -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
        };
        health
            .reporter
            .set_service_status(LIVENESS, ServingStatus::Serving)
            .await;
        health.set_ready(false).await;
        health
    }

    pub async fn set_ready(&self, ready: bool) {
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in READINESS {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// The service to add to a server.
    pub fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }
}
