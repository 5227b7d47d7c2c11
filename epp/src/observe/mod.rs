//! What an operator sees: metrics, the metrics page, and how log lines are written.
//!
//! [`metrics`] lists every series by name with typed handles; [`pool`] writes what is read off the
//! fleet at the moment of a scrape; [`page`] serves both, and what else it is handed; [`logging`]
//! sets up the log. Nothing here is global: two pickers in one process have two sets of metrics.

pub mod logging;
pub mod metrics;
pub mod page;
pub mod pool;

pub use metrics::{Metrics, ModelMetrics, ProcessMetrics};
