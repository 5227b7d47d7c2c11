//! KV events over ZMQ: which blocks this worker holds, as it happens.
//!
//! ```text
//! engine thread ── bounded channel ──▶ publisher task ──▶ PUB     [topic][sequence u64 BE][msgpack batch]
//!                                             │
//!                                             ▼
//!                                      replay buffer ──▶ ROUTER   answers "from sequence n" requests
//! ```
//!
//! PUB sockets drop what a slow subscriber cannot take, so every batch has a sequence number, starting at 0 with
//! the process. A subscriber that sees a gap asks the replay socket for what it missed; what the replay buffer no
//! longer holds is lost for good, and the subscriber has to forget what it knew of this worker. Batch 0 is
//! `AllBlocksCleared`, because a restarted worker often comes back under the address of its predecessor.
//!
//! The payload is encoded in [`pointsman_proto::kv_events`]; this module knows sockets and numbers only.

mod config;
mod faulty;
mod publisher;
mod replay;

pub use config::{KvEventsConfig, KvEventsConfigError};
pub use faulty::FaultyEvents;
pub use publisher::{KvEventPublisher, KvEventsError, Source, start};
