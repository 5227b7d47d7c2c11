//! `loadtest simulate`: a fleet that nobody can rent, in virtual time, from the product's own code.
//!
//! ```text
//! workload → world ─▶ replica (epp: fleet, index, schedule) ─▶ worker (engine: scheduler, kv, sim time model)
//!              ▲            ▲ pages, KV events, first tokens, ends, each after its delay │
//!              └────────────┴────────────────────────────────────────────────────────────┘
//! ```
//!
//! One process, one thread, no clock: [`world`] pops the next event off a queue and hands it to whom it concerns, so the
//! same seed gives the same result to the last digit. Nothing is a model that can be the product: picks are made by
//! `epp::schedule` over `epp::index` and `epp::fleet`, behind `epp::flow` where a configuration has it, steps are formed by `engine::scheduler` over `engine::kv`. Modelled are
//! only the seconds that a GPU takes and the milliseconds that news travel; stale news cost here what they cost outside.

pub mod command;
mod curves;
mod gate;
pub mod options;
pub mod outcome;
mod page;
pub mod policies;
pub mod replica;
pub mod worker;
pub mod world;
