//! A layer's second half: one gated network for all tokens, or a few of many for each.
//!
//! The tokens of one expert are gathered and computed together; what comes out is added to each token's own row, in the
//! order of the experts' numbers.

use super::experts::Routes;
use super::forward::{Context, ELEMENT_WORK, resize};
use super::matrix::{Matrix, Store};
use super::ops::silu_multiply;
use super::weights::{CpuFeedForward, CpuMlp};
use crate::model::ModelConfig;

/// Buffers over the step's tokens; they grow to the largest step and stay.
#[derive(Debug, Default)]
pub(super) struct FeedForward {
    mlp: Buffers,
    /// `[tokens, experts]`. This and what follows is empty in models without experts.
    likings: Vec<f32>,
    routes: Routes,
    /// `[tokens, hidden_size]`: what goes into one expert.
    inputs: Vec<f32>,
    /// `[tokens, hidden_size]`: what comes out of it.
    outputs: Vec<f32>,
}

/// Buffers of a gated network, as wide as the widest.
#[derive(Debug, Default)]
struct Buffers {
    /// `[tokens, 2 * inner]`.
    gate_up: Vec<f32>,
    /// `[tokens, inner]`.
    activated: Vec<f32>,
}

impl FeedForward {
    /// Sizes the buffers for a step of this many tokens.
    pub(super) fn prepare(&mut self, config: &ModelConfig, tokens: usize) {
        let inner = config.widest_feed_forward();
        resize(&mut self.mlp.gate_up, tokens * 2 * inner);
        resize(&mut self.mlp.activated, tokens * inner);
        if let Some(experts) = &config.experts {
            resize(&mut self.likings, tokens * experts.count);
            resize(&mut self.inputs, tokens * config.hidden_size);
            resize(&mut self.outputs, tokens * config.hidden_size);
        }
    }

    /// `y += mlp(x)`, or `y += Σ weight·expert(x)`; both are `[tokens, hidden_size]`. Or `y = …`.
    pub(super) fn compute(
        &mut self,
        context: &Context<'_>,
        weights: &CpuFeedForward,
        x: &[f32],
        y: &mut [f32],
        store: Store,
    ) {
        match weights {
            CpuFeedForward::Dense(mlp) => self.mlp.compute(context, mlp, x, y, store),
            CpuFeedForward::Experts { router, experts } => {
                if store == Store::Replace {
                    y.fill(0.0);
                }
                self.mixture(context, router, experts, x, y);
            }
        }
    }

    fn mixture(
        &mut self,
        context: &Context<'_>,
        router: &Matrix,
        experts: &[CpuMlp],
        x: &[f32],
        y: &mut [f32],
    ) {
        let (team, isa) = (context.team, context.isa);
        let width = context.config.hidden_size;
        let Some(config) = &context.config.experts else {
            return;
        };
        router.multiply(team, isa, x, &mut self.likings, Store::Replace);
        self.routes.choose(&self.likings, config);
        for routes in self.routes.by_expert() {
            let row = |token: u32| token as usize * width..(token as usize + 1) * width;
            let inputs = &mut self.inputs[..routes.len() * width];
            for (route, input) in routes.iter().zip(inputs.chunks_exact_mut(width)) {
                input.copy_from_slice(&x[row(route.token)]);
            }
            let outputs = &mut self.outputs[..routes.len() * width];
            let expert = &experts[routes[0].expert as usize];
            self.mlp
                .compute(context, expert, inputs, outputs, Store::Replace);
            for (route, output) in routes.iter().zip(outputs.chunks_exact(width)) {
                for (y, output) in y[row(route.token)].iter_mut().zip(output) {
                    *y += route.weight * output;
                }
            }
        }
    }
}

impl Buffers {
    /// `y = (silu(x·Wgate) * x·Wup)·Wdown`, or `y += …`.
    fn compute(
        &mut self,
        context: &Context<'_>,
        mlp: &CpuMlp,
        x: &[f32],
        y: &mut [f32],
        store: Store,
    ) {
        let (team, isa) = (context.team, context.isa);
        let rows = x.len() / context.config.hidden_size;
        let width = mlp.gate_up.outputs() / 2;
        let gate_up = &mut self.gate_up[..rows * 2 * width];
        let activated = &mut self.activated[..rows * width];
        mlp.gate_up.multiply(team, isa, x, gate_up, Store::Replace);
        let gate_up = &*gate_up;
        let parts = team.parts(activated.len() * ELEMENT_WORK);
        team.split_rows(parts, width, activated, &|first, rows| {
            silu_multiply(&gate_up[first * 2 * width..][..2 * rows.len()], width, rows);
        });
        mlp.down.multiply(team, isa, activated, y, store);
    }
}
