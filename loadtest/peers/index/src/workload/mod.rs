//! What happens to an index, as plain data: events that workers send, and prompts that are asked.
//!
//! A block is one 16-token stretch of one prompt together with everything before it. It is known
//! under three hashes: the engine's name for it, the hash of its tokens alone, which the peers are
//! asked by, and the chained request key, which ours is asked by. All three are drawn once and
//! stored in a table, so that no subject hashes anything while it is timed.

mod mooncake;
mod shapes;
mod teardown;

pub use teardown::teardown;

use std::ops::Range;

use anyhow::Result;

use crate::flags::Flags;

/// Place of a block in [`Workload::blocks`].
pub type BlockId = u32;

/// The three hashes of a block.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// What the engines call it: the same at every worker, because CRTC refuses blocks that two
    /// workers name differently.
    pub name: u64,
    /// Hash of the tokens in it, whatever came before.
    pub content: u64,
    /// Hash of the tokens in it and of all before.
    pub key: u64,
}

/// A stretch of [`Workload::ids`].
pub type Span = Range<u32>;

/// One KV event of one worker.
#[derive(Debug, Clone)]
pub struct Event {
    pub worker: u32,
    pub change: Change,
}

/// What an event says.
#[derive(Debug, Clone)]
pub enum Change {
    /// The worker now holds these blocks, which follow one another after `parent`.
    Store {
        parent: Option<BlockId>,
        blocks: Span,
    },
    /// The worker no longer holds these blocks.
    Remove { blocks: Span },
}

/// A prompt that some worker holds whole, or did when it was stored.
#[derive(Debug, Clone)]
pub struct Chain {
    pub worker: u32,
    pub path: Span,
}

/// Events, and the prompts that are asked once they are applied.
#[derive(Debug, Clone, Default)]
pub struct Stage {
    pub events: Vec<Event>,
    pub prompts: Vec<Span>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Workload {
    pub letter: Letter,
    pub workers: u32,
    pub blocks: Vec<Block>,
    pub ids: Vec<BlockId>,
    pub stages: Vec<Stage>,
    /// Events that can follow the last stage again and again: each removes the tail of a chain that
    /// a worker holds, and the next stores it again. Empty where the stages themselves churn.
    pub churn: Vec<Event>,
}

/// Which workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Letter {
    /// 64 prefixes of 128 blocks on 8 workers each, every one followed by private suffixes of 128.
    A,
    /// Every worker holds all of 61 chains of 256 blocks.
    B,
    /// Every worker holds 61 chains of 256 blocks of its own.
    C,
    /// A, with one block in an event instead of 16.
    D,
    /// Trunks of 16 nodes of 16 blocks: at the end of each node four workers leave into a branch of
    /// their own.
    E,
    /// A, eight times as deep: prefixes and suffixes of 1,024 blocks.
    F,
    /// The Mooncake conversation trace on 64 workers that each keep the 16,384 blocks used last.
    M,
}

impl Letter {
    /// What the workload is, in a few words.
    pub fn words(self) -> &'static str {
        match self {
            Self::A => "shared prefixes, private suffixes",
            Self::B => "every worker holds every chain",
            Self::C => "disjoint chains",
            Self::D => "A, one block an event",
            Self::E => "fan-out: four workers leave at each of 16 nodes",
            Self::F => "A, 2,048 blocks deep",
            Self::M => "Mooncake conversation trace, LRU churn",
        }
    }
}

impl Workload {
    /// Builds the workload of a letter.
    pub fn build(letter: Letter, flags: &Flags) -> Result<Self> {
        match letter {
            Letter::M => mooncake::build(flags),
            _ => Ok(shapes::build(letter, flags)),
        }
    }

    /// The block ids of a span.
    pub fn ids(&self, span: &Span) -> &[BlockId] {
        &self.ids[span.start as usize..span.end as usize]
    }

    /// The blocks of a span.
    pub fn blocks(&self, span: &Span) -> impl ExactSizeIterator<Item = &Block> + Clone {
        self.ids(span).iter().map(|id| &self.blocks[*id as usize])
    }

    /// The block of an id.
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    /// Appends ids to the table of spans.
    pub fn push_ids(&mut self, ids: &[BlockId]) -> Span {
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(ids);
        start..self.ids.len() as u32
    }

    /// Draws a block that follows `parent`, with hashes of its own.
    pub fn push_block(&mut self, parent: Option<BlockId>, random: &mut Random) -> BlockId {
        let content = random.next();
        let parent_key = parent.map_or(0, |id| self.block(id).key);
        let key = mix(parent_key.rotate_left(7) ^ content);
        self.blocks.push(Block {
            name: mix(key ^ 0x6e61_6d65),
            content,
            key,
        });
        (self.blocks.len() - 1) as BlockId
    }

    /// Blocks stored by all events.
    pub fn stored_blocks(&self) -> usize {
        let stages = self.stages.iter().flat_map(|stage| &stage.events);
        stages.map(Event::stored).sum()
    }

    /// Blocks removed by all events.
    pub fn removed_blocks(&self) -> usize {
        let stages = self.stages.iter().flat_map(|stage| &stage.events);
        stages.map(Event::removed).sum()
    }

    fn empty(letter: Letter) -> Self {
        Self {
            letter,
            workers: WORKERS,
            blocks: Vec::new(),
            ids: Vec::new(),
            stages: Vec::new(),
            churn: Vec::new(),
        }
    }
}

impl Event {
    /// Blocks that the event stores.
    pub fn stored(&self) -> usize {
        match &self.change {
            Change::Store { blocks, .. } => blocks.len(),
            Change::Remove { .. } => 0,
        }
    }

    /// Blocks that the event removes.
    pub fn removed(&self) -> usize {
        match &self.change {
            Change::Store { .. } => 0,
            Change::Remove { blocks } => blocks.len(),
        }
    }
}

/// Workers of every workload.
pub const WORKERS: u32 = 64;

/// SplitMix64: the same numbers on every machine from one seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The finalizer of SplitMix64: a bijection that leaves no pattern of its input.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
