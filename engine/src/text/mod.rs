//! Between token ids and text: incremental detokenisation and stop strings.
//!
//! The other direction (text and chat messages to token ids) is
//! [`pointsman_proto::prompt::PromptEncoder`], because the endpoint picker must compute exactly what the worker
//! computes. What is here runs once per generated token, so both halves keep a small window and never look at
//! the whole answer again.

mod detokenize;
mod pieces;
mod stop;

pub use detokenize::{Detokenizer, token_text};
pub use pieces::Pieces;
pub use stop::{StopStrings, StopText};
