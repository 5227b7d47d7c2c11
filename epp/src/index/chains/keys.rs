//! The keys of a prompt's blocks, computed ahead or as far as they are asked for.

use pointsman_proto::block_hash::RequestKey;

/// The chained keys of a prompt's full blocks, in order. A lookup asks for few more than it can
/// match, so a source that computes them may do so as it is asked.
pub trait KeyChain {
    /// Full blocks of the prompt.
    fn len(&self) -> usize;
    /// Keys that cost nothing more.
    fn ready(&self) -> usize;
    /// The key of a block; 0 past the end.
    fn key(&mut self, block: usize) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Keys that are there already.
impl KeyChain for &[RequestKey] {
    fn len(&self) -> usize {
        <[RequestKey]>::len(self)
    }

    fn ready(&self) -> usize {
        <[RequestKey]>::len(self)
    }

    #[inline]
    fn key(&mut self, block: usize) -> u64 {
        self.get(block).map_or(0, |key| key.0)
    }
}

/// The same as plain numbers, as the writer has them.
pub(super) struct Keys<'a>(pub(super) &'a [u64]);

impl KeyChain for Keys<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn ready(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn key(&mut self, block: usize) -> u64 {
        self.0.get(block).copied().unwrap_or_default()
    }
}

/// Keys of token ids, hashed as far as they are asked for into a buffer that is reused.
#[derive(Debug)]
pub struct TokenKeys<'a> {
    tokens: &'a [u32],
    block_size: usize,
    root: RequestKey,
    ready: &'a mut Vec<RequestKey>,
}

impl<'a> TokenKeys<'a> {
    /// The keys of the full blocks of `tokens`. A block size of 0 yields none.
    pub fn new(
        root: RequestKey,
        tokens: &'a [u32],
        block_size: u32,
        buffer: &'a mut Vec<RequestKey>,
    ) -> Self {
        buffer.clear();
        Self {
            tokens,
            block_size: block_size as usize,
            root,
            ready: buffer,
        }
    }
}

impl KeyChain for TokenKeys<'_> {
    fn len(&self) -> usize {
        self.tokens.len().checked_div(self.block_size).unwrap_or(0)
    }

    fn ready(&self) -> usize {
        self.ready.len()
    }

    #[inline]
    fn key(&mut self, block: usize) -> u64 {
        while self.ready.len() <= block {
            let parent = self.ready.last().copied().unwrap_or(self.root);
            let from = self.ready.len() * self.block_size;
            let Some(tokens) = self.tokens.get(from..from + self.block_size) else {
                return 0;
            };
            self.ready.push(parent.child(tokens, &[]));
        }
        self.ready.get(block).map_or(0, |key| key.0)
    }
}
