//! One step through all layers.
//!
//! The residual stream of all the step's tokens is one `[tokens, hidden_size]` buffer. A step of some layers leaves it
//! for the one that goes on; one such step is under way at a time. After the last layer only the
//! rows that somebody asks for go on to [`logits`](super::logits).

use std::ops::Range;

use super::attention::{Attention, Tiles};
use super::feed_forward::FeedForward;
use super::kernels::Isa;
use super::kv_memory::KvMemory;
use super::logits::Logits;
use super::matrix::Store;
use super::ops::{rms_norm, rms_norm_in_place, rotate};
use super::team::Team;
use super::weights::{CpuLayer, CpuWeights};
use super::{Step, StepOutput};
use crate::backend::exchange::Exchange;
use crate::model::ModelConfig;

/// Multiply-adds that an element of a cheap operation counts as, in the decision to use more threads.
pub(super) const ELEMENT_WORK: usize = 8;

/// The model's shape and the scratch memory of its steps.
#[derive(Debug)]
pub(super) struct Forward {
    config: ModelConfig,
    frequencies: Vec<f32>,
    scratch: Scratch,
    logits: Logits,
    stopped: Stopped,
}

/// A step that has been computed up to some layer.
#[derive(Debug, Default)]
struct Stopped {
    /// The next one; 0 for no such step.
    layer: usize,
    /// Its residual stream.
    hidden: Vec<f32>,
}

/// Buffers over the step's tokens; they grow to the largest step and stay.
#[derive(Debug, Default)]
struct Scratch {
    tiles: Tiles,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// `[tokens, hidden_size]`, the residual stream.
    hidden: Vec<f32>,
    /// `[tokens, hidden_size]`.
    normed: Vec<f32>,
    /// `[tokens, (heads + 2 * kv_heads) * head_dim]`.
    qkv: Vec<f32>,
    /// `[tokens, heads * head_dim]`.
    attended: Vec<f32>,
    /// `[tokens, hidden_size]`: this rank's part of what is added to the residual stream; empty where it is all.
    part: Vec<f32>,
    feed_forward: FeedForward,
}

/// What every part of a step needs.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) team: &'a Team,
    pub(super) isa: Isa,
    pub(super) config: &'a ModelConfig,
    pub(super) step: &'a Step,
    pub(super) exchange: &'a dyn Exchange,
}

impl Forward {
    pub(super) fn new(config: &ModelConfig) -> Self {
        Self {
            frequencies: config.rope_frequencies(),
            config: config.clone(),
            scratch: Scratch::default(),
            logits: Logits::default(),
            stopped: Stopped::default(),
        }
    }

    /// The layers that `step` goes through.
    fn layers(&self, step: &Step) -> Range<usize> {
        let all = 0..self.config.layers;
        let some = step.layers.as_ref();
        some.map_or(all, |layers| layers.start as usize..layers.end as usize)
    }

    /// Whether `step` can be computed: from the first layer on, or from where the one that stopped has come to.
    pub(super) fn check(&self, step: &Step) -> Result<(), String> {
        if !step.sources.is_empty() {
            return Err("its tokens are not known yet".to_owned());
        }
        let layers = self.layers(step);
        if layers.is_empty() || layers.end > self.config.layers {
            return Err(format!("layers {layers:?} of {}", self.config.layers));
        }
        let stopped = &self.stopped;
        let hidden = step.tokens.len() * self.config.hidden_size;
        if layers.start > 0 && (layers.start, hidden) != (stopped.layer, stopped.hidden.len()) {
            return Err(format!(
                "layers {layers:?} do not follow layer {} of a step",
                stopped.layer
            ));
        }
        Ok(())
    }

    /// Computes `step`, which has passed [`Self::check`], and samples.
    pub(super) fn compute(
        &mut self,
        team: &Team,
        isa: Isa,
        weights: &CpuWeights,
        kv: &mut KvMemory,
        (step, exchange): (&Step, &dyn Exchange),
        out: &mut StepOutput,
    ) {
        let context = Context {
            team,
            isa,
            config: &self.config,
            step,
            exchange,
        };
        let layers = self.layers(step);
        let scratch = &mut self.scratch;
        scratch.prepare(&context, weights, &self.frequencies);
        if layers.start > 0 {
            scratch.hidden.copy_from_slice(&self.stopped.hidden);
        }
        for (index, layer) in weights.layers[layers.clone()].iter().enumerate() {
            scratch.attend(&context, layer, layers.start + index, kv);
            scratch.feed_forward(&context, layer);
        }
        if layers.end < self.config.layers {
            self.stopped.layer = layers.end;
            self.stopped.hidden.clear();
            self.stopped.hidden.extend_from_slice(&scratch.hidden);
            return;
        }
        self.logits.compute(&context, weights, &scratch.hidden, out);
    }
}

impl Scratch {
    /// Sizes the buffers, embeds the tokens, and computes the rotations of their positions.
    fn prepare(&mut self, context: &Context<'_>, weights: &CpuWeights, frequencies: &[f32]) {
        let config = context.config;
        let tokens = context.step.tokens.len();
        resize(&mut self.hidden, tokens * config.hidden_size);
        resize(&mut self.normed, tokens * config.hidden_size);
        resize(&mut self.qkv, tokens * qkv_width(config));
        resize(&mut self.attended, tokens * config.heads * config.head_dim);
        if context.exchange.ranks() > 1 {
            resize(&mut self.part, tokens * config.hidden_size);
        }
        self.feed_forward.prepare(config, tokens);
        self.tiles.cut(context.step);
        let rows = self.hidden.chunks_exact_mut(config.hidden_size);
        for (row, token) in rows.zip(&context.step.tokens) {
            weights.embed(*token, row);
        }
        self.cosines.clear();
        self.sines.clear();
        for &position in &context.step.positions {
            // The product is rounded to f32 before the cosine is taken, as the reference implementation does.
            let angles = frequencies
                .iter()
                .map(|frequency| position as f32 * frequency);
            for (sine, cosine) in angles.map(|angle| f64::from(angle).sin_cos()) {
                self.cosines.push(cosine as f32 * config.rope.amplitude);
                self.sines.push(sine as f32 * config.rope.amplitude);
            }
        }
    }

    /// `hidden += attention(norm(hidden))·Wo`, writing keys and values on the way.
    fn attend(&mut self, context: &Context<'_>, layer: &CpuLayer, index: usize, kv: &mut KvMemory) {
        let Context {
            team,
            isa,
            config,
            step,
            ..
        } = *context;
        norm_rows(
            team,
            config,
            &self.hidden,
            &layer.input_norm,
            &mut self.normed,
        );
        layer
            .qkv
            .multiply(team, isa, &self.normed, &mut self.qkv, Store::Replace);
        let half = config.rope.dim / 2;
        let (cosines, sines) = (&self.cosines, &self.sines);
        let parts = team.parts(self.qkv.len() * ELEMENT_WORK);
        team.split_rows(parts, qkv_width(config), &mut self.qkv, &|first, rows| {
            for (row, qkv) in rows.chunks_exact_mut(qkv_width(config)).enumerate() {
                let angle = (first + row) * half..(first + row + 1) * half;
                finish_qkv(config, layer, &cosines[angle.clone()], &sines[angle], qkv);
            }
        });
        // Keys and values of all new tokens are in place before any of them is looked at.
        for (qkv, &slot) in self.qkv.chunks_exact(qkv_width(config)).zip(&step.slots) {
            let keys_values = &qkv[config.heads * config.head_dim..];
            let (keys, values) = keys_values.split_at(config.kv_heads * config.head_dim);
            let heads = keys
                .chunks_exact(config.head_dim)
                .zip(values.chunks_exact(config.head_dim));
            for (head, (key, value)) in heads.enumerate() {
                kv.write(index, slot, head, key, value);
            }
        }
        let attention = Attention {
            isa,
            step,
            kv,
            layer: index,
            queries: &self.qkv,
            query_stride: qkv_width(config),
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            window: config.window(index),
        };
        attention.compute(team, &self.tiles, &mut self.attended);
        let Self {
            attended,
            hidden,
            part,
            ..
        } = self;
        add_up(context.exchange, part, hidden, |y, store| {
            layer.o.multiply(team, isa, attended, y, store);
        });
    }

    /// `hidden += mlp(norm(hidden))`, or the same with a few of many networks for each token.
    fn feed_forward(&mut self, context: &Context<'_>, layer: &CpuLayer) {
        norm_rows(
            context.team,
            context.config,
            &self.hidden,
            &layer.post_norm,
            &mut self.normed,
        );
        let Self {
            normed,
            hidden,
            part,
            feed_forward,
            ..
        } = self;
        add_up(context.exchange, part, hidden, |y, store| {
            feed_forward.compute(context, &layer.feed_forward, normed, y, store);
        });
    }
}

/// Adds to the residual stream what `compute` gives: directly where this rank has all of it, else what all ranks' parts
/// come to.
fn add_up(
    exchange: &dyn Exchange,
    part: &mut [f32],
    hidden: &mut [f32],
    compute: impl FnOnce(&mut [f32], Store),
) {
    if exchange.ranks() == 1 {
        return compute(hidden, Store::Add);
    }
    compute(part, Store::Replace);
    exchange.add_up(part);
    for (hidden, part) in hidden.iter_mut().zip(part) {
        *hidden += *part;
    }
}

/// Turns one token's products into what attention works with: biases added, heads normalised and rotated, queries
/// scaled.
fn finish_qkv(
    config: &ModelConfig,
    layer: &CpuLayer,
    cosines: &[f32],
    sines: &[f32],
    qkv: &mut [f32],
) {
    for (value, bias) in qkv.iter_mut().zip(&layer.qkv_bias) {
        *value += bias;
    }
    let queries = config.heads * config.head_dim;
    let (queries, rest) = qkv.split_at_mut(queries);
    let keys = &mut rest[..config.kv_heads * config.head_dim];
    if let Some([of_queries, of_keys]) = &layer.qk_norms {
        rms_norm_in_place(queries, of_queries, config.rms_norm_eps);
        rms_norm_in_place(keys, of_keys, config.rms_norm_eps);
    }
    let heads = queries.chunks_exact_mut(config.head_dim);
    for head in heads.chain(keys.chunks_exact_mut(config.head_dim)) {
        rotate(head, cosines, sines);
    }
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    for query in queries {
        *query *= scale;
    }
}

fn norm_rows(team: &Team, config: &ModelConfig, x: &[f32], weight: &[f32], out: &mut [f32]) {
    let parts = team.parts(x.len() * ELEMENT_WORK);
    team.split_rows(parts, weight.len(), out, &|first, rows| {
        let x = &x[first * weight.len()..][..rows.len()];
        rms_norm(x, weight, config.rms_norm_eps, rows);
    });
}

fn qkv_width(config: &ModelConfig) -> usize {
    (config.heads + 2 * config.kv_heads) * config.head_dim
}

/// Exactly `length` elements, whose values are about to be overwritten. Capacity never shrinks.
pub(super) fn resize(buffer: &mut Vec<f32>, length: usize) {
    buffer.resize(length, 0.0);
}
