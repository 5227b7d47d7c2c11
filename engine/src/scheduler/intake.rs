//! Decides whether a request can ever run here, and readies what is needed for it.
//!
//! It is a value without state, so every caller can hold a copy and do this work on its own thread: hashing the blocks
//! of a 32k-token prompt takes about a millisecond, which the engine thread would otherwise pay between two steps.
//!
//! Two bounds on length hold at once, the model's context and the size of the pool. A request that reaches either one
//! while generating ends with `Finish::Length`; only a prompt that exceeds one by itself is refused.

use std::sync::Arc;
use std::time::Duration;

use pointsman_proto::block_hash::BlockDigest;

use super::{NewRequest, Policy, Task};
use crate::kv::{BlockId, HashRecipe};
use crate::sample::SamplingParams;

/// The limits a request is held against.
#[derive(Clone, Debug)]
pub struct Intake {
    pub(super) block_size: u32,
    pub(super) max_model_len: u32,
    /// Blocks that requests can hold.
    pub(super) blocks_total: u32,
    pub(super) vocab_size: u32,
    /// Hashes prompts ahead when prefix caching is on.
    pub(super) recipe: Option<HashRecipe>,
    pub(super) policy: Policy,
}

/// A request that can run, with its prompt's block digests.
#[derive(Debug)]
pub struct Prepared {
    pub(super) id: Arc<str>,
    /// The prompt, with room reserved for every token that may follow.
    pub(super) tokens: Vec<u32>,
    pub(super) sampling: SamplingParams,
    pub(super) max_tokens: u32,
    pub(super) cache_salt: Option<Arc<str>>,
    pub(super) report_reused_blocks: bool,
    pub(super) priority: i32,
    pub(super) task: Task,
    pub(super) deadline: Option<Duration>,
    pub(super) digests: Vec<BlockDigest>,
    /// Empty, with room for every block that the request can come to hold.
    pub(super) table: Vec<BlockId>,
}

/// Why a request can never run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing to go on from.
    #[error("the prompt is empty")]
    PromptEmpty,
    /// The prompt leaves no room for a token in the context.
    #[error("the prompt has {tokens} tokens; at most {max} are possible")]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// The most a prompt may have.
        max: usize,
    },
    /// The whole pool is smaller than the prompt.
    #[error("the prompt needs {blocks} KV blocks; the pool has {total}")]
    CannotFit {
        /// Blocks for the prompt and one token.
        blocks: usize,
        /// Blocks in the pool.
        total: usize,
    },
    /// A priority where order of arrival is the only order.
    #[error("Got priority {priority} but Priority scheduling is not enabled.")]
    PriorityNotEnabled {
        /// The request's priority.
        priority: i32,
    },
    /// A token id that the model does not have.
    #[error("token id {token} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The first such id.
        token: u32,
        /// Ids are below this.
        vocab_size: u32,
    },
}

impl Intake {
    /// The longest context in tokens, prompt and output together.
    pub fn max_model_len(&self) -> u32 {
        self.max_model_len
    }

    /// Checks `request`, lowers its `max_tokens` to what there is room for, and hashes its prompt's full blocks.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn prepare(&self, request: NewRequest) -> Result<Prepared, Refused> {
        self.prepare_hashed(request, Vec::new())
    }

    /// [`Intake::prepare`] for a prompt of which the first blocks are hashed already: `digests` are what the
    /// scheduler's own recipe makes of them.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn prepare_hashed(
        &self,
        request: NewRequest,
        mut digests: Vec<BlockDigest>,
    ) -> Result<Prepared, Refused> {
        let NewRequest {
            id,
            prompt: mut tokens,
            sampling,
            cache_salt,
            priority,
            task,
            deadline,
            report_reused_blocks,
            ..
        } = request;
        if priority != 0 && self.policy == Policy::Fcfs {
            return Err(Refused::PriorityNotEnabled { priority });
        }
        let room = self.room_after(&tokens, task)?;
        let max_tokens = match task {
            // One token at least: such a request has no other use for an engine.
            Task::Generate => sampling.max_tokens.clamp(1, room),
            Task::Embed => 0,
        };
        let blocks_max = (tokens.len() + max_tokens as usize).div_ceil(self.block_size as usize);
        if let Some(recipe) = &self.recipe {
            digests.reserve_exact(blocks_max.saturating_sub(digests.len()));
            recipe.extend(
                &mut digests,
                &tokens,
                self.block_size,
                cache_salt.as_deref(),
            );
        }
        tokens.reserve_exact(max_tokens as usize);
        Ok(Prepared {
            id,
            tokens,
            sampling,
            max_tokens,
            cache_salt,
            report_reused_blocks,
            priority,
            task,
            deadline,
            digests,
            table: Vec::with_capacity(blocks_max),
        })
    }

    /// How many tokens can follow this prompt; at least one, unless none are to.
    fn room_after(&self, prompt: &[u32], task: Task) -> Result<u32, Refused> {
        let tokens = prompt.len();
        let output = u32::from(task == Task::Generate);
        let max = self.max_model_len.saturating_sub(output) as usize;
        if tokens == 0 {
            return Err(Refused::PromptEmpty);
        }
        if tokens > max {
            return Err(Refused::PromptTooLong { tokens, max });
        }
        // The last token generated is never computed, so it needs no slot.
        let blocks = tokens.div_ceil(self.block_size as usize);
        let total = self.blocks_total as usize;
        if blocks > total {
            return Err(Refused::CannotFit { blocks, total });
        }
        if let Some(&token) = prompt.iter().find(|token| **token >= self.vocab_size) {
            return Err(Refused::UnknownToken {
                token,
                vocab_size: self.vocab_size,
            });
        }
        let context = self.max_model_len as usize - tokens;
        let pool = total * self.block_size as usize + 1 - tokens;
        Ok(context.min(pool) as u32)
    }
}

impl Prepared {
    /// The limit on generated tokens that is in force; at least 1, unless none are to be generated.
    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// Tokens in the prompt.
    pub fn prompt_tokens(&self) -> u64 {
        self.tokens.len() as u64
    }
}
