//! Holds the promise that steps allocate nothing after warm-up, by counting this thread's allocations.

#![expect(unsafe_code, reason = "an allocator that counts is still an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use super::{Rig, small};
use crate::backend::{Backend, Sampled, Step, StepOutput};
use crate::kv::HashRecipe;
use crate::sample::SamplingParams;
use crate::scheduler::{NewRequest, Outcome, Scheduler, SchedulerConfig};

/// Tokens that each request generates.
const MAX_TOKENS: u32 = 120;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count for each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory but a thread's own cell,
// which has no destructor and needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn steps_allocate_nothing_after_warm_up() {
    let mut rig = Rig::new(&small(), 1, 16);
    let mut scheduler = scheduler();
    let (mut step, mut output) = (Step::default(), StepOutput::default());
    let mut outcome = Outcome::default();
    let mut turn = |scheduler: &mut Scheduler| {
        let any = scheduler.schedule(Duration::ZERO, &mut step);
        if any {
            rig.backend.forward(&step, &mut output).unwrap();
            scheduler.complete(&mut output, Duration::ZERO, &mut outcome);
        }
        any
    };
    // The first load is the warm-up: buffers that hold whole contexts grow as far as these requests go.
    add_requests(&mut scheduler, 0, 1.1);
    while turn(&mut scheduler) {}
    add_requests(&mut scheduler, 7, 1.1);
    let counted = allocations(|| {
        // The first token comes in the second turn, so none has its last one after these.
        for _ in 0..MAX_TOKENS {
            turn(&mut scheduler);
        }
    });
    assert_eq!(
        scheduler.stats().running,
        4,
        "the requests should not have ended yet"
    );
    assert!(scheduler.stats().generated_tokens > 7 * u64::from(MAX_TOKENS));
    assert_eq!(counted, 0);
}

#[test]
fn steps_formed_ahead_allocate_nothing_after_warm_up() {
    let mut scheduler = scheduler();
    let (mut step, mut output) = (Step::default(), StepOutput::default());
    let mut outcome = Outcome::default();
    let mut begun = VecDeque::with_capacity(2);
    let mut ahead = 0;
    let mut turn = |scheduler: &mut Scheduler| {
        if begun.is_empty() && scheduler.schedule(Duration::ZERO, &mut step) {
            begun.push_back(step.samples.len());
        }
        if scheduler.schedule_ahead(Duration::ZERO, &mut step) {
            begun.push_back(step.samples.len());
            ahead += 1;
        }
        let samples = begun.pop_front();
        output.clear();
        output
            .sampled
            .extend((0..samples.unwrap_or(0)).map(|_| Sampled {
                token: Some(1),
                logprob: None,
            }));
        scheduler.complete(&mut output, Duration::ZERO, &mut outcome);
        samples.is_some()
    };
    add_requests(&mut scheduler, 0, 1.0);
    while turn(&mut scheduler) {}
    add_requests(&mut scheduler, 7, 1.0);
    let counted = allocations(|| {
        for _ in 0..MAX_TOKENS {
            turn(&mut scheduler);
        }
    });
    assert_eq!(scheduler.stats().running, 4);
    assert!(ahead > 3 * MAX_TOKENS / 2, "{ahead}");
    assert_eq!(counted, 0);
}

fn scheduler() -> Scheduler {
    let config = SchedulerConfig {
        block_size: 16,
        blocks: 64,
        max_num_seqs: 4,
        max_num_batched_tokens: 24,
        max_num_queued: 8,
        max_model_len: 256,
        vocab_size: 61,
        prefix_cache: Some(HashRecipe::sha256_cbor("vllm-none-hash")),
        kv_events: false,
        eos_token_ids: vec![],
        seed: 0,
        ..SchedulerConfig::default()
    };
    Scheduler::new(config).unwrap()
}

/// Four requests with every kind of work in sampling; without a penalty all of it can go ahead.
fn add_requests(scheduler: &mut Scheduler, first_token: u32, repetition_penalty: f32) {
    for index in 0..4 {
        let sampling = SamplingParams {
            temperature: 0.8,
            top_k: 20,
            top_p: 0.9,
            repetition_penalty,
            ..SamplingParams::greedy(MAX_TOKENS)
        };
        let first = first_token + index;
        let request = NewRequest::new("test", (first..first + 40).collect(), sampling);
        let prepared = scheduler.intake().prepare(request).unwrap();
        scheduler.add(prepared, Duration::ZERO);
    }
}
