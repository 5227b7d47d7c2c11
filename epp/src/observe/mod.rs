//! What an operator sees: metrics, traces, the decision log, the status page, and the log.
//!
//! [`catalogue`] lists every series by name, [`metrics`] records them through typed calls, and
//! [`pool`] and [`flow`] write what is read off their rooms at the moment of a scrape;
//! [`exposition`] writes the text, under the field's present names and its earlier ones.
//! [`decisions`] keeps the latest picks with their reasons, [`status`] is the state of everything
//! as values, [`html`] its page, and [`page`] serves them all. [`spans`] sends traces, [`logging`]
//! sets up the log. Nothing here is global: two pickers in one process have two sets of metrics.

pub mod catalogue;
pub mod cells;
pub mod decisions;
pub mod exposition;
pub mod family;
pub mod flow;
pub mod groups;
pub mod html;
pub mod logging;
pub mod metrics;
pub mod page;
pub mod pool;
pub mod request_series;
pub mod spans;
pub mod status;

pub use cells::{Counter, Gauge, Histogram};
pub use metrics::{Metrics, OfRequest};
pub use request_series::RequestLabels;
