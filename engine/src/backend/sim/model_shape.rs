//! The shapes of the models that can be simulated, and what follows from a shape: weights, FLOP, bytes.
//!
//! The numbers are those of each model's published `config.json`. Everything else is counted from them, so that a
//! shape cannot contradict itself; tests hold the counts against the sizes that the authors state.

/// Bytes of a weight or of a KV element: everything is bf16.
pub const ELEMENT_BYTES: u64 = 2;

/// A decoder's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// What `--sim-model` calls it.
    pub name: &'static str,
    /// Layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Width of the feed-forward layer, or of one expert of it.
    pub intermediate_size: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Rows of the embedding and of the head.
    pub vocab_size: u64,
    /// Longest context in tokens.
    pub context: u32,
    /// How many experts each feed-forward layer has, and how many of them a token passes; (1, 1) is a dense model.
    pub experts: (u64, u64),
}

/// The shapes by name.
pub const MODELS: [ModelShape; 7] = [
    dense("llama-3.1-8b", 32, [4096, 14336, 32, 8, 128], 128_256).with_context(131_072),
    dense("llama-3.1-70b", 80, [8192, 28672, 64, 8, 128], 128_256).with_context(131_072),
    dense("qwen3-8b", 36, [4096, 12288, 32, 8, 128], 151_936).with_context(40_960),
    dense("qwen3-32b", 64, [5120, 25600, 64, 8, 128], 151_936).with_context(40_960),
    dense("qwen3-30b-a3b", 48, [2048, 768, 32, 4, 128], 151_936)
        .with_context(40_960)
        .with_experts(128, 8),
    dense("mistral-7b", 32, [4096, 14336, 32, 8, 128], 32_768).with_context(32_768),
    dense("phi-3-mini", 32, [3072, 8192, 32, 32, 96], 32_064).with_context(4_096),
];

/// `sizes` are hidden and intermediate size, heads, KV heads and head width.
const fn dense(name: &'static str, layers: u64, sizes: [u64; 5], vocab_size: u64) -> ModelShape {
    let [hidden_size, intermediate_size, heads, kv_heads, head_dim] = sizes;
    ModelShape {
        name,
        layers,
        hidden_size,
        intermediate_size,
        heads,
        kv_heads,
        head_dim,
        vocab_size,
        context: 0,
        experts: (1, 1),
    }
}

impl ModelShape {
    /// The shape of that name.
    pub fn named(name: &str) -> Option<Self> {
        MODELS.into_iter().find(|shape| shape.name == name)
    }

    const fn with_context(self, context: u32) -> Self {
        Self { context, ..self }
    }

    const fn with_experts(self, all: u64, per_token: u64) -> Self {
        Self {
            experts: (all, per_token),
            ..self
        }
    }

    /// Weights of the attention's four matrices in one layer.
    fn attention_weights(&self) -> u64 {
        2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
    }

    /// Weights of the gate, up and down matrices of one expert in one layer.
    fn expert_weights(&self) -> u64 {
        3 * self.hidden_size * self.intermediate_size
    }

    /// Weights of the router in one layer; a dense model has none.
    fn router_weights(&self) -> u64 {
        if self.experts.0 == 1 {
            0
        } else {
            self.hidden_size * self.experts.0
        }
    }

    /// Weights of the head; the embedding has as many.
    fn head_weights(&self) -> u64 {
        self.hidden_size * self.vocab_size
    }

    /// All weights. Norms are left out: they are less than a thousandth.
    pub fn weights(&self) -> u64 {
        let layer = self.attention_weights()
            + self.router_weights()
            + self.experts.0 * self.expert_weights();
        self.layers * layer + 2 * self.head_weights()
    }

    /// Bytes of all weights in memory.
    pub fn weight_bytes(&self) -> u64 {
        self.weights() * ELEMENT_BYTES
    }

    /// Bytes of KV cache for one token over all layers.
    pub fn kv_bytes_per_token(&self) -> u64 {
        2 * self.layers * self.kv_heads * self.head_dim * ELEMENT_BYTES
    }

    /// Multiply-adds of one token in the layers' matrices, without the head.
    pub(super) fn layer_products(&self) -> u64 {
        let layer = self.attention_weights()
            + self.router_weights()
            + self.experts.1 * self.expert_weights();
        self.layers * layer
    }

    /// Multiply-adds of the head for one token that is sampled.
    pub(super) fn head_products(&self) -> u64 {
        self.head_weights()
    }

    /// Multiply-adds of one token with one token of its context: the score and the weighted value, in all layers.
    pub(super) fn attention_products(&self) -> u64 {
        2 * self.layers * self.heads * self.head_dim
    }

    /// Bytes of weights that a step of `tokens` tokens reads, with the head if any of them is sampled.
    ///
    /// A dense model reads all of them. Of a mixture it reads the experts that at least one token is sent to: with
    /// tokens sent evenly, `all * (1 - (1 - per_token/all)^tokens)`.
    pub(super) fn bytes_read(&self, tokens: u64, sampled: bool) -> f64 {
        let (all, per_token) = (self.experts.0 as f64, self.experts.1 as f64);
        let missed = (1.0 - per_token / all).powf(tokens as f64);
        let experts = all * (1.0 - missed) * self.expert_weights() as f64;
        let layer = (self.attention_weights() + self.router_weights()) as f64 + experts;
        let head = if sampled { self.head_weights() } else { 0 };
        (self.layers as f64 * layer + head as f64) * ELEMENT_BYTES as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_the_authors_state() {
        for (name, billions) in [
            ("llama-3.1-8b", 8.03),
            ("llama-3.1-70b", 70.6),
            ("qwen3-8b", 8.2),
            ("qwen3-32b", 32.8),
            ("qwen3-30b-a3b", 30.5),
            ("mistral-7b", 7.25),
            ("phi-3-mini", 3.8),
        ] {
            let shape = ModelShape::named(name).unwrap();
            let counted = shape.weights() as f64 / 1e9;
            assert!((counted / billions - 1.0).abs() < 0.01, "{name}: {counted}");
        }
    }

    #[test]
    fn bytes_of_a_step_and_of_the_cache_are_those_of_the_roofline() {
        let llama = ModelShape::named("llama-3.1-8b").unwrap();
        let qwen = ModelShape::named("qwen3-8b").unwrap();
        assert_eq!(llama.kv_bytes_per_token(), 128 << 10);
        assert_eq!(qwen.kv_bytes_per_token(), 144 << 10);
        assert!((llama.bytes_read(1, true) / 15.0e9 - 1.0).abs() < 0.01);
        assert!((qwen.bytes_read(1, true) / 15.1e9 - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_mixture_reads_few_experts_for_one_token_and_all_for_many() {
        let shape = ModelShape::named("qwen3-30b-a3b").unwrap();
        let active = shape.bytes_read(1, true) / 2e9;
        assert!((active / 3.0 - 1.0).abs() < 0.1, "{active} billion active");
        let all = shape.bytes_read(100_000, true);
        let embedding = shape.head_weights() * ELEMENT_BYTES;
        assert!((all / (shape.weight_bytes() - embedding) as f64 - 1.0).abs() < 1e-6);
        assert!(shape.bytes_read(16, true) < shape.bytes_read(17, true));
    }
}
