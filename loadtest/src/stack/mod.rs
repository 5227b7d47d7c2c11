//! The whole stack as child processes on this machine: binaries → ports → workers → epp → Envoy.
//!
//! Everything real: the shipped Envoy templates, an Envoy from a registry, the two binaries of this workspace. A
//! stack listens on loopback only, needs no fixed port, and leaves no process behind however it ends.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use pointsman_loadtest::stack::{Stack, StackOptions, Template};
//!
//! let mut stack = Stack::start(
//!     StackOptions::new().workers(2).template(Template::OverrideHost).epp_flag("--fallback-endpoints=1"),
//! )
//! .await?;
//! println!("{}", stack.gateway().url());
//! stack.workers_mut()[0].kill().await;
//! # Ok(())
//! # }
//! ```

mod access_log;
mod binaries;
mod envoy;
mod epp;
mod exposition;
mod gateway;
mod options;
mod parts;
mod ports;
mod process;
mod progress;
mod render;
mod running;
mod template;
mod watchdog;
mod worker;

pub use access_log::AccessLogEntry;
pub(crate) use binaries::target_folder;
pub use binaries::{Binaries, Profile, workspace_root};
pub use envoy::{Envoy, EnvoyChoice, PINNED_VERSION, TESTED_VERSIONS};
pub use epp::Epp;
pub use exposition::metric_sum;
pub use gateway::Gateway;
pub(crate) use gateway::GatewaySpec;
pub use options::{MODEL_NAME, StackOptions};
pub use parts::{ExtraFilter, FilterPlace, Parts, UsageFilter, Watch};
pub use ports::{free_port, preferred_port};
pub use process::{Process, ProcessSpec};
pub use progress::{Progress, Silent};
pub use running::Stack;
pub(crate) use running::{Folder, start_workers};
pub use template::{Template, TemplateValues};
pub use worker::Worker;
