//! What a step takes, learned from the steps before it.
//!
//! Two small fits, both of relative error, so that a step of 5 ms counts as much as one of 2 s:
//!
//! ```text
//! decode  = a + d · rows + e · context read          from steps without prompts
//! prompts = b · tokens + c · pairs of tokens + f · context read
//!                                                   from what steps with prompts took beyond their decodes
//! ```
//!
//! The decode fit never sees a step with prompts: in a long run of mixed steps nothing would tell the two parts apart,
//! and whoever bounds one by the other would follow the error. Instead [`CostModel::wants_decodes_alone`] asks now and
//! then for a step without prompts.
//!
//! Both fits forget: about a hundred steps carry half of the weight, so a machine that becomes slower is followed. A
//! single step that took far longer than it should (another process had the core) counts as twice the expectation
//! at most; several in a row are believed.
//!
//! Times depend on the machine and decide only how prompts are cut, never what is computed.

/// Steps without prompts that must have been seen before the decode fit is of use.
const DECODES_MIN: u32 = 3;
/// Steps with prompts beside decodes after which one without prompts is due.
const MIXED_MAX: u32 = 64;
/// Each observation weighs this much less with every further one.
const MEMORY: f64 = 0.99;
/// Pull towards the former values, as a fraction of the weight of all observations: what the latest steps do not tell
/// stays as it was.
const INERTIA: f64 = 1e-3;
/// Sweeps of coordinate descent per observation; it goes on from the former solution, so few suffice.
const SWEEPS: u32 = 8;
/// Relative excess over the prediction above which a step counts as stalled.
const STALL: f64 = 1.0;
/// As many stalled steps in a row are a change of the machine.
const STALLS_MAX: u32 = 4;

/// A step as the model sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests that compute one token.
    pub(super) decode_rows: u64,
    /// Tokens in their contexts.
    pub(super) decode_context: u64,
    /// Tokens of prompts.
    pub(super) prompt_tokens: u64,
    /// Pairs of such a token and a token that it attends to.
    pub(super) prompt_pairs: u64,
    /// Tokens before the parts of prompts: each part reads them once, however short it is.
    pub(super) prompt_context: u64,
}

impl Load {
    /// One more decode of a context of `context` tokens.
    pub(super) fn add_decode(&mut self, context: usize) {
        self.decode_rows += 1;
        self.decode_context += context as u64;
    }

    /// `count` more tokens of a prompt, after the first `start`.
    pub(super) fn add_prompt(&mut self, start: usize, count: usize) {
        self.prompt_tokens += count as u64;
        self.prompt_pairs += pairs(start, count);
        self.prompt_context += start as u64;
    }

    /// Scaled so that the terms of ordinary steps are about 1.
    fn decode_terms(self) -> [f64; 3] {
        let rows = self.decode_rows as f64 / 16.0;
        [1.0, rows, self.decode_context as f64 / CONTEXT_SCALE]
    }

    fn prompt_terms(self) -> [f64; 3] {
        let tokens = self.prompt_tokens as f64 / TOKENS_SCALE;
        let pairs = self.prompt_pairs as f64 / PAIRS_SCALE;
        [tokens, pairs, self.prompt_context as f64 / CONTEXT_SCALE]
    }
}

const TOKENS_SCALE: f64 = 256.0;
const PAIRS_SCALE: f64 = 256.0 * 1024.0;
const CONTEXT_SCALE: f64 = 16_384.0;

fn pairs(start: usize, count: usize) -> u64 {
    let (start, count) = (start as u64, count as u64);
    count * start + count * (count + 1) / 2
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub(super) struct CostModel {
    decode: Fit<3>,
    prompts: Fit<3>,
    /// Steps with prompts beside decodes since the last one without.
    mixed: u32,
}

impl CostModel {
    /// Takes in what a step took.
    pub(super) fn observe(&mut self, load: Load, seconds: f64) {
        self.observe_share(load, 1.0, seconds);
    }

    /// Takes in what a step took that had this share of the layers.
    pub(super) fn observe_share(&mut self, load: Load, share: f64, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        if load.prompt_tokens == 0 {
            self.mixed = 0;
            debug_assert!(share >= 1.0, "decodes go through all layers");
            self.decode.observe(load.decode_terms(), seconds, seconds);
            return;
        }
        if load.decode_rows > 0 {
            self.mixed = self.mixed.saturating_add(1);
        }
        // Before any decode the constant is not known, and a long prompt's own time dwarfs it.
        let decodes = self.decode.predict(load.decode_terms()) * share;
        let terms = load.prompt_terms().map(|term| term * share);
        self.prompts
            .observe(terms, (seconds - decodes).max(0.0), seconds);
    }

    /// Whether the next step should have no prompts, so that the time of decodes is known.
    pub(super) fn wants_decodes_alone(&self) -> bool {
        self.decode.seen < DECODES_MIN || self.mixed >= MIXED_MAX
    }

    /// Seconds of a step with the decodes of `load` and nothing else.
    pub(super) fn decode_seconds(&self, load: Load) -> f64 {
        self.decode.predict(load.decode_terms())
    }

    /// Seconds that prompts add; none before the first prompt.
    pub(super) fn prompt_cost(&self) -> Option<PromptCost> {
        let [tokens, pairs, context] = self.prompts.weights;
        (self.prompts.seen > 0).then_some(PromptCost {
            token: tokens / TOKENS_SCALE,
            pair: pairs / PAIRS_SCALE,
            context: context / CONTEXT_SCALE,
        })
    }
}

/// What the tokens of a prompt add to a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PromptCost {
    /// Seconds a token, wherever it stands.
    pub(super) token: f64,
    /// Seconds for each token that a token attends to, itself included.
    pub(super) pair: f64,
    /// Seconds for each token before a part of the prompt, however short the part is.
    pub(super) context: f64,
}

impl PromptCost {
    /// Seconds for `count` tokens after the first `start`.
    pub(super) fn seconds(&self, start: usize, count: usize) -> f64 {
        if count == 0 {
            return 0.0;
        }
        let context = self.context * start as f64;
        context + self.token * count as f64 + self.pair * pairs(start, count) as f64
    }

    /// The most tokens after the first `start` that take at most `seconds`.
    pub(super) fn tokens_within(&self, seconds: f64, start: usize) -> usize {
        let seconds = seconds - self.context * start as f64;
        if seconds <= 0.0 {
            return 0;
        }
        // seconds = linear · n + pair/2 · n², solved for n in the form that stays exact as `pair` goes to 0.
        let linear = self.token + self.pair * (start as f64 + 0.5);
        let root = (linear * linear + 2.0 * self.pair * seconds).sqrt();
        let count = 2.0 * seconds / (linear + root);
        // A cost of 0 makes it infinite; the conversion saturates.
        count as usize
    }
}

/// Weighted least squares over `N` terms with weights that are never negative.
#[derive(Clone, Debug)]
struct Fit<const N: usize> {
    weights: [f64; N],
    products: [[f64; N]; N],
    targets: [f64; N],
    /// Sum of the observations' own weights.
    total: f64,
    seen: u32,
    stalls: u32,
}

impl<const N: usize> Default for Fit<N> {
    fn default() -> Self {
        Self {
            weights: [0.0; N],
            products: [[0.0; N]; N],
            targets: [0.0; N],
            total: 0.0,
            seen: 0,
            stalls: 0,
        }
    }
}

impl<const N: usize> Fit<N> {
    fn predict(&self, terms: [f64; N]) -> f64 {
        let products = self.weights.iter().zip(terms);
        products.map(|(weight, term)| weight * term).sum()
    }

    /// `terms` took `seconds` of a step of `step` seconds; errors count relative to the step.
    fn observe(&mut self, terms: [f64; N], seconds: f64, step: f64) {
        let (seconds, step) = self.without_stall(terms, seconds, step);
        let weight = 1.0 / (step * step);
        self.total = self.total * MEMORY + weight;
        for (i, term) in terms.iter().enumerate() {
            self.targets[i] = self.targets[i] * MEMORY + weight * term * seconds;
            for (j, other) in terms.iter().enumerate() {
                self.products[i][j] = self.products[i][j] * MEMORY + weight * term * other;
            }
        }
        self.seen = self.seen.saturating_add(1);
        self.solve();
    }

    /// A step that took far longer than predicted counts as if it had taken as long as is just believable. After
    /// some in a row the machine is another one: what was observed before is forgotten, and they count in full.
    fn without_stall(&mut self, terms: [f64; N], seconds: f64, step: f64) -> (f64, f64) {
        let expected = self.predict(terms) + (step - seconds);
        let believable = expected * (1.0 + STALL);
        if self.seen < DECODES_MIN || step <= believable {
            self.stalls = 0;
            return (seconds, step);
        }
        self.stalls += 1;
        if self.stalls >= STALLS_MAX {
            *self = Self {
                weights: self.weights,
                seen: self.seen,
                ..Self::default()
            };
            return (seconds, step);
        }
        (seconds - (step - believable), believable)
    }

    /// Coordinate descent from the former weights, each kept at 0 or above.
    fn solve(&mut self) {
        let pull = INERTIA * self.total;
        let former = self.weights;
        for _ in 0..SWEEPS {
            for (i, former) in former.iter().enumerate() {
                let products = self.products[i];
                let all: f64 = products.iter().zip(self.weights).map(|(p, w)| p * w).sum();
                let others = all - products[i] * self.weights[i];
                let target = self.targets[i] + pull * former - others;
                self.weights[i] = (target / (products[i] + pull)).max(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
