//! The backend's threads, and how work is cut for them.
//!
//! A layer is some seven short pieces of work with a wait between them, a few microseconds each for a small model: too
//! short to wake a thread for. So the team's helpers stay awake for a moment after each piece and look for the next
//! one, then sleep, so that an idle worker burns no time.
//!
//! ```text
//! gate = generation << 16 | open << 15 | helpers inside
//!
//! leader   writes the job, opens the gate, takes units, closes the gate, waits until nobody is inside
//! helper   sees an open gate of a new generation, steps inside (compare and swap), takes units, steps out
//! ```
//!
//! Units are taken one by one from a shared counter, so a helper that comes late (it slept, or the machine gave its
//! core away) delays nobody: the others take its share, and a closed gate keeps it out. Nothing is allocated.
//! One thread means no helpers at all.

#![expect(
    unsafe_code,
    reason = "helpers borrow the leader's work for as long as the leader waits for them"
)]

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};

use super::columns::each_chunk;

/// Multiply-adds below which a further thread costs more than it brings.
const WORK_PER_THREAD: usize = 1 << 15;

/// Looks at the gate before a helper sleeps; each takes some 50 ns.
const SPINS: u32 = 2_000;

/// Looks at a gate that others are inside before the leader gives its core away between looks.
const LEADER_SPINS: u32 = 1_000;

/// The gate's bit that says it is open; below it is the number of helpers inside.
const OPEN: u64 = 1 << 15;

/// One generation of the gate.
const GENERATION: u64 = 1 << 16;

/// A fixed number of threads, of which the caller is one.
#[derive(Debug)]
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

/// Lines of their own for what different threads write.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

#[derive(Debug)]
struct Shared {
    gate: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    job: UnsafeCell<Job>,
    /// Held by the leader of the moment.
    busy: AtomicBool,
    stop: AtomicBool,
    failed: AtomicBool,
    asleep: Box<[Line<AtomicBool>]>,
}

// SAFETY: all fields but `job` are atomics. `job` is written by the one thread that holds `busy`, while the gate is
// closed and nobody is inside, and read only by those who stepped inside an open gate after that.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointers in `job` are used only while the leader that wrote them waits.
unsafe impl Send for Shared {}

#[derive(Clone, Copy, Debug)]
struct Job {
    work: *const (),
    call: unsafe fn(*const (), usize),
    units: usize,
}

impl Team {
    /// A team of `threads`, with the caller's.
    pub(super) fn new(threads: usize) -> Result<Self, String> {
        let helpers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: Line::default(),
            next: Line::default(),
            job: UnsafeCell::new(Job {
                work: std::ptr::null(),
                call: call::<fn(usize)>,
                units: 0,
            }),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| Line::default()).collect(),
        });
        // Made first, so that dropping it ends those that started when one does not.
        let mut team = Self {
            shared,
            helpers: Vec::with_capacity(helpers),
            sleepers: Vec::with_capacity(helpers),
        };
        for index in 0..helpers {
            let shared = Arc::clone(&team.shared);
            let thread = thread::Builder::new().name(format!("cpu-{}", index + 1));
            let helper = thread
                .spawn(move || shared.help(index))
                .map_err(|error| error.to_string())?;
            team.sleepers.push(helper.thread().clone());
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Threads, the caller's among them.
    pub(super) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Into how many parts `work` multiply-adds are worth cutting, one for each thread.
    pub(super) fn parts(&self, work: usize) -> usize {
        (work / WORK_PER_THREAD).clamp(1, self.threads())
    }

    /// Calls `work` once with each number below `units`, on all threads together, and returns when all is done.
    /// Within `work`, and while another thread leads, it runs on the caller alone.
    pub(super) fn units<F: Fn(usize) + Sync>(&self, units: usize, work: &F) {
        let shared = &*self.shared;
        if self.helpers.is_empty() || units <= 1 || shared.busy.swap(true, Ordering::Acquire) {
            (0..units).for_each(work);
            return;
        }
        let job = Job {
            work: std::ptr::from_ref(work).cast(),
            call: call::<F>,
            units,
        };
        // SAFETY: this thread holds `busy`, and the last leader left only when nobody was inside.
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        // Released with the gate; sequentially consistent, so that either a helper on its way to sleep sees the gate
        // open, or this thread sees it asleep.
        let gate = shared.gate.0.load(Ordering::Relaxed);
        let opened = (gate & !(GENERATION - 1)).wrapping_add(GENERATION) | OPEN;
        shared.gate.0.store(opened, Ordering::SeqCst);
        for (asleep, sleeper) in shared.asleep.iter().zip(&self.sleepers) {
            if asleep.0.load(Ordering::SeqCst) && asleep.0.swap(false, Ordering::SeqCst) {
                sleeper.unpark();
            }
        }
        // Also when `work` panics here: helpers may still be using it.
        let closing = Closing(shared);
        while let Some(unit) = shared.take(units) {
            work(unit);
        }
        drop(closing);
    }

    /// Cuts `rows` of `width` elements each into `parts`; `work` gets the number of its first row, and its rows.
    pub(super) fn split_rows(
        &self,
        parts: usize,
        width: usize,
        rows: &mut [f32],
        work: &(impl Fn(usize, &mut [f32]) + Sync),
    ) {
        let count = rows.len() / width.max(1);
        if parts <= 1 || count <= 1 {
            return work(0, rows);
        }
        let height = count.div_ceil(parts);
        each_chunk(self, rows, height * width, |part, rows| {
            work(part * height, rows);
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches what panics in it.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn take(&self, units: usize) -> Option<usize> {
        let unit = self.next.0.fetch_add(1, Ordering::Relaxed);
        (unit < units).then_some(unit)
    }

    fn help(&self, index: usize) {
        let mut seen = 0;
        while let Some(gate) = self.wait(index, seen) {
            seen = gate & !(GENERATION - 1);
            if !self.step_inside(gate) {
                continue;
            }
            // SAFETY: inside an open gate; see `Shared`.
            let job = unsafe { *self.job.get() };
            let worked = catch_unwind(AssertUnwindSafe(|| {
                while let Some(unit) = self.take(job.units) {
                    // SAFETY: the leader borrows what `work` points to until nobody is inside, and `call` is of its type.
                    unsafe { (job.call)(job.work, unit) };
                }
            }));
            if worked.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.gate.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open gate of another generation than `seen`; none when the team ends.
    fn wait(&self, index: usize, seen: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            let gate = self.gate.0.load(Ordering::Acquire);
            if gate & OPEN != 0 && gate & !(GENERATION - 1) != seen {
                return Some(gate);
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            spins += 1;
            if spins < SPINS {
                spin_loop();
                continue;
            }
            let asleep = self.asleep.get(index)?;
            asleep.0.store(true, Ordering::SeqCst);
            let gate = self.gate.0.load(Ordering::SeqCst);
            let open = gate & OPEN != 0 && gate & !(GENERATION - 1) != seen;
            if !open && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            asleep.0.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }

    /// Counts this helper in, unless the gate closes first.
    fn step_inside(&self, mut gate: u64) -> bool {
        let generation = gate & !(GENERATION - 1);
        while gate & OPEN != 0 && gate & !(GENERATION - 1) == generation {
            let entered = self.gate.0.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match entered {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }
}

/// Ends a leader's turn: closes the gate and waits for those inside.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        shared.gate.0.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0;
        while shared.gate.0.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            spins += 1;
            if spins < LEADER_SPINS {
                spin_loop();
            } else {
                // Whoever is inside may be waiting for this core.
                thread::yield_now();
            }
        }
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        shared.busy.store(false, Ordering::Release);
        if failed && !thread::panicking() {
            resume_unwind(Box::new("a thread of the CPU backend panicked"));
        }
    }
}

/// # Safety
/// `work` must point to a living `F`.
unsafe fn call<F: Fn(usize)>(work: *const (), unit: usize) {
    // SAFETY: the caller's promise.
    let work = unsafe { &*work.cast::<F>() };
    work(unit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_runs_once_in_every_turn() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).unwrap();
            for turn in 0..2_000_usize {
                let units = turn % 23;
                let counts: [AtomicUsize; 23] = std::array::from_fn(|_| AtomicUsize::new(0));
                team.units(units, &|unit| {
                    counts[unit].fetch_add(1, Ordering::Relaxed);
                });
                for (unit, count) in counts.into_iter().enumerate() {
                    assert_eq!(count.into_inner(), usize::from(unit < units));
                }
            }
        }
    }

    #[test]
    fn a_turn_within_a_turn_runs_where_it_is() {
        let team = Team::new(3).unwrap();
        let count = AtomicUsize::new(0);
        team.units(4, &|_| {
            let me = thread::current().id();
            team.units(5, &|_| {
                assert_eq!(thread::current().id(), me);
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 20);
    }

    #[test]
    fn a_panic_reaches_the_leader_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for bad in 0..8 {
            let turn = catch_unwind(AssertUnwindSafe(|| {
                team.units(8, &|unit| assert_ne!(unit, bad));
            }));
            assert!(turn.is_err());
        }
        let count = AtomicUsize::new(0);
        team.units(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn rows_are_cut_into_parts_that_cover_them() {
        for threads in [1, 3] {
            let team = Team::new(threads).unwrap();
            for (count, parts) in [(0, 3), (1, 3), (7, 1), (7, 3), (9, 4)] {
                let mut rows = vec![0.0; count * 2];
                team.split_rows(parts, 2, &mut rows, &|first, rows| {
                    for (row, values) in rows.chunks_exact_mut(2).enumerate() {
                        for value in values {
                            *value += (first + row) as f32;
                        }
                    }
                });
                let expected: Vec<f32> = (0..count * 2).map(|i| (i / 2) as f32).collect();
                assert_eq!(rows, expected);
            }
        }
    }
}
