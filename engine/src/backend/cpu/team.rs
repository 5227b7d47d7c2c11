//! The backend's threads, and how work is cut for them.
//!
//! Work is cut in halves by recursion, so that each part gets its own disjoint piece of the output and the borrow
//! checker agrees. Nothing is allocated: a rayon join lives on the stack of its caller. One thread means no pool at
//! all.

use std::ops::Range;

use super::columns::Columns;

/// Multiply-adds below which a further thread costs more than it brings (waking one takes some 5 µs).
const WORK_PER_THREAD: usize = 1 << 18;

/// A fixed number of threads.
#[derive(Debug)]
pub(super) struct Team {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Team {
    pub(super) fn new(threads: usize) -> Result<Self, String> {
        let threads = threads.max(1);
        let pool = (threads > 1).then(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.thread_name(|index| format!("cpu-{index}")).build()
        });
        Ok(Self {
            pool: pool.transpose().map_err(|error| error.to_string())?,
            threads,
        })
    }

    /// Runs `work` where it may call the other methods.
    pub(super) fn run(&self, work: impl FnOnce() + Send) {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Into how many parts `work` multiply-adds are worth cutting.
    pub(super) fn parts(&self, work: usize) -> usize {
        (work / WORK_PER_THREAD).clamp(1, self.threads)
    }

    /// Cuts `rows` of `width` elements each into `parts`; `work` gets the number of its first row, and its rows.
    pub(super) fn split_rows(
        parts: usize,
        width: usize,
        rows: &mut [f32],
        work: &(impl Fn(usize, &mut [f32]) + Sync),
    ) {
        Self::split_rows_from(parts, width, 0, rows, work);
    }

    fn split_rows_from(
        parts: usize,
        width: usize,
        first: usize,
        rows: &mut [f32],
        work: &(impl Fn(usize, &mut [f32]) + Sync),
    ) {
        let count = rows.len() / width.max(1);
        if parts <= 1 || count <= 1 {
            return work(first, rows);
        }
        let middle = count * (parts / 2) / parts;
        let (left, right) = rows.split_at_mut(middle * width);
        rayon::join(
            || Self::split_rows_from(parts / 2, width, first, left, work),
            || Self::split_rows_from(parts - parts / 2, width, first + middle, right, work),
        );
    }

    /// Cuts the panels `range`, of `width` columns each, into `parts`; `work` gets its panels and their columns.
    pub(super) fn split_panels(
        parts: usize,
        width: usize,
        range: Range<usize>,
        columns: Columns<'_>,
        work: &(impl Fn(Range<usize>, Columns<'_>) + Sync),
    ) {
        if parts <= 1 || range.len() <= 1 {
            return work(range, columns);
        }
        let middle = range.len() * (parts / 2) / parts;
        let (left, right) = columns.split_at(middle * width);
        let (start, middle, end) = (range.start, range.start + middle, range.end);
        rayon::join(
            || Self::split_panels(parts / 2, width, start..middle, left, work),
            || Self::split_panels(parts - parts / 2, width, middle..end, right, work),
        );
    }
}
