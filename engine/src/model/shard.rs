//! Tensor parallelism: which part of each tensor a rank holds, said once for every family and every backend.
//!
//! ```text
//! h = norm(x)                         every rank has all of x
//! q, k, v = h·qkvᵀ                    cut by rows (column parallel): a rank has some heads
//! attention                           each rank over its own heads; a key-value head that ranks share is in all of them
//! x += Σ over ranks of a·oᵀ           cut by columns (row parallel): each rank's product is a part of the sum
//! gate_up, down                       the same over the inner width; so in each expert
//! logits = norm(x)·headᵀ              cut by rows: a rank has some of the vocabulary
//! ```
//!
//! So ranks meet twice a layer, to add up what they have, and once for logits. Embedding, norms and router are whole
//! in every rank. What a rank holds is a smaller model of the same shape: [`Shard::config`] is its configuration, and a
//! backend computes it like any other, but for the three meetings. Scales of weights of 8 bits are cut with them, and
//! where weights share a scale in blocks, ranks may only be cut between blocks.

use std::borrow::Cow;
use std::ops::Range;

use super::{FeedForward, Grain, Layer, Mlp, ModelConfig, Scales, Tensor};

/// One rank's part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    ranks: usize,
}

/// A model that cannot be cut into so many parts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model cannot be shared by {ranks} ranks: {reason}")]
pub struct ShardError {
    ranks: usize,
    reason: String,
}

/// Some rows and columns of a tensor: borrowed where they lie together, copied where they do not.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    tensor: Tensor<'a>,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
    /// Scales downwards and across, and what they are.
    scales: ([usize; 2], Cow<'a, [u8]>),
}

/// One rank's part of a layer.
#[derive(Debug)]
pub struct LayerPart<'a> {
    layer: &'a Layer<'a>,
    qkv: Vec<Part<'a>>,
    qkv_bias: Vec<Part<'a>>,
    o: Part<'a>,
    mlps: Vec<MlpPart<'a>>,
}

#[derive(Debug)]
struct MlpPart<'a> {
    gate_up: Vec<Part<'a>>,
    down: Part<'a>,
}

impl Shard {
    /// All of a model.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// Rank `rank` of `ranks`.
    ///
    /// # Errors
    /// When heads or inner widths cannot be dealt out evenly, or not between blocks of weights that share a scale, or
    /// there is no such rank.
    pub fn new(rank: usize, ranks: usize, config: &ModelConfig) -> Result<Self, ShardError> {
        let check = |fine: bool, reason: String| {
            if fine {
                Ok(())
            } else {
                Err(ShardError { ranks, reason })
            }
        };
        check(rank < ranks, format!("there is no rank {rank}"))?;
        let divides = |what: &str, count: usize| {
            let reason = format!("{count} {what} cannot be dealt out evenly");
            check(count.is_multiple_of(ranks), reason)
        };
        divides("attention heads", config.heads)?;
        if !ranks.is_multiple_of(config.kv_heads) {
            divides("key-value heads", config.kv_heads)?;
        }
        if (0..config.layers).any(|layer| config.layer_experts(layer).is_none()) {
            divides("inner elements", config.intermediate_size)?;
        }
        if let Some(experts) = &config.experts {
            divides("inner elements of an expert", experts.intermediate_size)?;
        }
        let shard = Self { rank, ranks };
        for (what, each) in shard.cuts(config) {
            let [block, _] = Grain::Block.each();
            let reason = format!(
                "a rank would have {each} {what}, and scales are of blocks of {block} weights"
            );
            check(each.is_multiple_of(block), reason)?;
        }
        Ok(shard)
    }

    /// Rows or columns that a rank has of matrices that are cut, where scales ask for a cut between blocks.
    fn cuts(self, config: &ModelConfig) -> Vec<(&'static str, usize)> {
        let quantization = config.quantization.as_ref();
        if self.is_whole() || quantization.is_none_or(|fp8| fp8.grain != Grain::Block) {
            return Vec::new();
        }
        let own = self.config(config);
        let mut cuts = vec![
            ("rows of queries", own.heads * own.head_dim),
            ("rows of keys", own.kv_heads * own.head_dim),
        ];
        if (0..config.layers).any(|layer| config.layer_experts(layer).is_none()) {
            cuts.push(("inner elements", own.intermediate_size));
        }
        let experts = own.experts.map(|experts| experts.intermediate_size);
        cuts.extend(experts.map(|inner| ("inner elements of an expert", inner)));
        cuts
    }

    /// Whether this is all of the model.
    pub fn is_whole(self) -> bool {
        self.ranks == 1
    }

    /// The configuration of what this rank computes. Its vocabulary is the whole one, as its embedding is.
    pub fn config(self, config: &ModelConfig) -> ModelConfig {
        let mut own = config.clone();
        own.heads = config.heads / self.ranks;
        own.kv_heads = self.kv_heads(config).len();
        own.intermediate_size = config.intermediate_size / self.ranks;
        if let Some(experts) = &mut own.experts {
            experts.intermediate_size /= self.ranks;
        }
        own
    }

    /// The tokens whose logits rank `rank` of this one's group computes: equal parts, but for the last ones.
    pub fn vocabulary_of(self, rank: usize, config: &ModelConfig) -> Range<usize> {
        let each = config.vocab_size.div_ceil(self.ranks);
        let end = |rank: usize| (rank * each).min(config.vocab_size);
        end(rank)..end(rank + 1)
    }

    /// This rank's rows of the head.
    pub fn head<'a>(self, head: &Tensor<'a>, config: &ModelConfig) -> Part<'a> {
        Part::rows(head, self.vocabulary_of(self.rank, config))
    }

    /// This rank's part of a layer.
    pub fn layer<'a>(self, layer: &'a Layer<'a>, config: &ModelConfig) -> LayerPart<'a> {
        let dim = config.head_dim;
        let of_heads = |first: usize, heads: &Range<usize>| {
            (first + heads.start) * dim..(first + heads.end) * dim
        };
        let (heads, kv_heads) = (self.share(config.heads), self.kv_heads(config));
        let rows = [
            of_heads(0, &heads),
            of_heads(config.heads, &kv_heads),
            of_heads(config.heads + config.kv_heads, &kv_heads),
        ];
        let mlps = match &layer.feed_forward {
            FeedForward::Dense(mlp) => vec![self.mlp(mlp)],
            FeedForward::Experts { experts, .. } => {
                experts.iter().map(|expert| self.mlp(expert)).collect()
            }
        };
        LayerPart {
            layer,
            qkv: cut_rows(&layer.qkv, &rows),
            qkv_bias: cut_rows(&layer.qkv_bias, &rows),
            o: Part::columns(&layer.o, of_heads(0, &heads)),
            mlps,
        }
    }

    fn mlp<'a>(self, mlp: &Mlp<'a>) -> MlpPart<'a> {
        let inner = mlp.down.shape.get(1).copied().unwrap_or(0);
        let own = self.share(inner);
        let ups = inner + own.start..inner + own.end;
        MlpPart {
            gate_up: cut_rows(&mlp.gate_up, &[own.clone(), ups]),
            down: Part::columns(&mlp.down, own),
        }
    }

    /// This rank's of `count` things that are dealt out evenly.
    fn share(self, count: usize) -> Range<usize> {
        let each = count / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }

    /// With more ranks than key-value heads, neighbouring ranks have the same one.
    fn kv_heads(self, config: &ModelConfig) -> Range<usize> {
        if config.kv_heads >= self.ranks {
            return self.share(config.kv_heads);
        }
        let head = self.rank * config.kv_heads / self.ranks;
        head..head + 1
    }
}

/// Rows of tensors that lie one below the other, as one matrix: for each range what it has of each tensor.
fn cut_rows<'a>(tensors: &[Tensor<'a>], ranges: &[Range<usize>]) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for range in ranges {
        let mut first = 0;
        for tensor in tensors {
            let rows = tensor.shape.first().copied().unwrap_or(0);
            let own = range.start.clamp(first, first + rows) - first
                ..range.end.clamp(first, first + rows) - first;
            if !own.is_empty() {
                parts.push(Part::rows(tensor, own));
            }
            first += rows;
        }
    }
    parts
}

impl<'a> Part<'a> {
    fn rows(tensor: &Tensor<'a>, rows: Range<usize>) -> Self {
        let mut shape = tensor.shape.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        let width = shape.iter().skip(1).product();
        Self::new(tensor, shape, rows, 0..width)
    }

    fn columns(tensor: &Tensor<'a>, columns: Range<usize>) -> Self {
        let rows = tensor.shape.first().copied().unwrap_or(1);
        Self::new(tensor, vec![rows, columns.len()], 0..rows, columns)
    }

    fn new(
        tensor: &Tensor<'a>,
        shape: Vec<usize>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Self {
        let scales = tensor.scales.map(|scales| {
            let [down, across] = scales.grain.each();
            let of = |cut: &Range<usize>, each| cut.start / each..cut.end.div_ceil(each);
            let (down, across) = (of(&rows, down), of(&columns, across));
            let shape = [down.len(), across.len()];
            let size = scales.element.size();
            (
                shape,
                cut(
                    scales.bytes,
                    scales.shape[1] * size,
                    down,
                    in_bytes(&across, size),
                ),
            )
        });
        let (size, width) = (
            tensor.element.size(),
            tensor.shape.iter().skip(1).product::<usize>(),
        );
        Self {
            tensor: *tensor,
            shape,
            bytes: cut(tensor.bytes, width * size, rows, in_bytes(&columns, size)),
            scales: scales.unwrap_or_default(),
        }
    }

    /// It as a tensor.
    pub fn view(&self) -> Tensor<'_> {
        let (shape, bytes) = &self.scales;
        Tensor {
            element: self.tensor.element,
            shape: &self.shape,
            bytes: &self.bytes,
            scales: self.tensor.scales.map(|whole| Scales {
                grain: whole.grain,
                element: whole.element,
                shape: *shape,
                bytes,
            }),
        }
    }
}

/// A range of elements as one of bytes.
fn in_bytes(range: &Range<usize>, size: usize) -> Range<usize> {
    range.start * size..range.end * size
}

/// Some rows of `width` bytes, and of each of them some bytes.
fn cut(bytes: &[u8], width: usize, rows: Range<usize>, own: Range<usize>) -> Cow<'_, [u8]> {
    let bytes = &bytes[rows.start * width..rows.end * width];
    if own == (0..width) {
        return Cow::Borrowed(bytes);
    }
    let rows = bytes.chunks_exact(width.max(1));
    Cow::Owned(rows.flat_map(|row| &row[own.clone()]).copied().collect())
}

impl LayerPart<'_> {
    /// It as a layer.
    pub fn view(&self) -> Layer<'_> {
        let layer = self.layer;
        let mut mlps = self.mlps.iter().map(|mlp| Mlp {
            gate_up: mlp.gate_up.iter().map(Part::view).collect(),
            down: mlp.down.view(),
        });
        let feed_forward = match &layer.feed_forward {
            FeedForward::Experts { router, .. } => FeedForward::Experts {
                router: *router,
                experts: mlps.collect(),
            },
            FeedForward::Dense(whole) => FeedForward::Dense(mlps.next().unwrap_or(Mlp {
                gate_up: Vec::new(),
                down: whole.down,
            })),
        };
        Layer {
            input_norm: layer.input_norm,
            qkv: self.qkv.iter().map(Part::view).collect(),
            qkv_bias: self.qkv_bias.iter().map(Part::view).collect(),
            qk_norms: layer.qk_norms,
            o: self.o.view(),
            post_norm: layer.post_norm,
            feed_forward,
        }
    }
}

#[cfg(test)]
mod tests;
