//! The tokenizers of a pool: folders on this machine, and a remote one for the models without.

use std::sync::Arc;

use anyhow::Context;
use pointsman_proto::prompt::PromptEncoder;
use tracing::info;

use crate::clock::Clock;
use crate::config::TokenizerFolder;
use crate::pipeline::Policy;
use crate::tokens::{RenderClient, RenderService, TokenLimits, Tokens};

/// Loads the folders; the remote tokenizer is that of the configuration.
pub(super) fn load(
    folders: &[TokenizerFolder],
    policy: &Policy,
    clock: &Clock,
) -> anyhow::Result<Tokens> {
    let mut encoders = Vec::new();
    for tokenizer in folders {
        let folder = tokenizer.folder.display();
        let encoder = PromptEncoder::load(&tokenizer.folder)
            .with_context(|| format!("cannot load the tokenizer in {folder}"))?;
        let model = tokenizer.model.clone().unwrap_or_default();
        info!(%folder, model, vocabulary = encoder.vocab_size(), cuts = %encoder.cuts(), "tokenizer loaded");
        encoders.push((model, Arc::new(encoder)));
    }
    let remote = match policy.remote_tokenizer() {
        Some((url, timeout, model)) => {
            info!(
                url,
                model, "prompts of models without a tokenizer here are rendered remotely"
            );
            let service = RenderService {
                url,
                model,
                timeout,
            };
            Some(Arc::new(RenderClient::new(service, clock.clone())?))
        }
        None => None,
    };
    Ok(Tokens::new(encoders, TokenLimits::default()).with_remote(remote))
}
