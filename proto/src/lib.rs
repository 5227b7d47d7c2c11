//! Everything that crosses a process boundary between epp, the engine and the programs around them.
//!
//! Two programs that agree on a wire format by writing it down twice drift apart. So each format
//! has one home here: the codec of KV events, the recipes of block hashes, the JSON of the OpenAI
//! API, the names of headers and series, and the way from a prompt to token ids, which epp must
//! walk exactly as the engine does or its prefix lookups miss.
//!
//! The crate opens no socket and starts no task, and knows neither epp nor the engine. What reads
//! from outside the arguments is small and named: [`prompt::PromptEncoder::load`] reads a model
//! folder, and a chat template that asks for the date reads the wall clock.

pub mod block_hash;
pub mod headers;
pub mod kv_events;
pub mod openai;
pub mod prompt;
pub mod series;
