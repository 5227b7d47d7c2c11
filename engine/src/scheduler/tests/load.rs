//! Any load, under any limits.

use proptest::prelude::*;

use super::*;

/// One request of a random load.
#[derive(Clone, Debug)]
pub(super) struct Load {
    family: u32,
    shared: u32,
    pub(super) prompt: u32,
    pub(super) sampling: SamplingParams,
    priority: i32,
    arrives: u32,
    aborted: Option<u32>,
    deadline: Option<u32>,
    pub(super) embed: bool,
}

impl Load {
    fn request(&self) -> NewRequest {
        let token = |i| {
            if i < self.shared {
                i + 1
            } else {
                (i * 7 + self.family * 31) % VOCAB
            }
        };
        let prompt = (0..self.prompt).map(token).collect();
        NewRequest {
            priority: self.priority,
            deadline: self.deadline.map(|turns| Duration::from_secs(turns.into())),
            task: if self.embed {
                Task::Embed
            } else {
                Task::Generate
            },
            ..request(prompt, self.sampling.clone())
        }
    }
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    (
        1_u32..30,
        0_u32..6,
        any::<bool>(),
        proptest::collection::vec(0..VOCAB, 0..4),
        proptest::option::weighted(0.2, 0_u32..3),
        proptest::collection::vec(proptest::collection::vec(0..VOCAB, 1..3), 0..3),
    )
        .prop_map(
            |(max_tokens, min_tokens, ignore_eos, stop_token_ids, prompt_logprobs, bad_words)| {
                SamplingParams {
                    min_tokens,
                    stop_token_ids,
                    ignore_eos,
                    prompt_logprobs,
                    bad_words,
                    ..SamplingParams::greedy(max_tokens)
                }
            },
        )
}

pub(super) fn load() -> impl Strategy<Value = Load> {
    (
        (0_u32..3, 0_u32..24, 1_u32..32),
        sampling(),
        -1_i32..2,
        0_u32..12,
        proptest::option::weighted(0.15, 0_u32..20),
        proptest::option::weighted(0.15, 1_u32..40),
        prop::bool::weighted(0.15),
    )
        .prop_map(
            |((family, shared, prompt), sampling, priority, arrives, aborted, deadline, embed)| {
                Load {
                    family,
                    shared,
                    prompt,
                    sampling,
                    priority,
                    arrives,
                    aborted,
                    deadline,
                    embed,
                }
            },
        )
}

/// What happens to the engine as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Incident {
    /// A pause for so many turns.
    Pause(Pause, u32),
    /// Everybody loses their blocks, and the prefix cache is emptied.
    Reset,
}

pub(super) fn incident() -> impl Strategy<Value = (u32, Incident)> {
    let kind = prop_oneof![
        (1_u32..6).prop_map(|turns| Incident::Pause(Pause::Everything, turns)),
        (1_u32..6).prop_map(|turns| Incident::Pause(Pause::Admission, turns)),
        Just(Incident::Reset),
    ];
    (0_u32..40, kind)
}

pub(super) fn limits() -> impl Strategy<Value = SchedulerConfig> {
    (
        (
            1_u32..7,
            0_u32..20,
            1_u32..6,
            0_u32..20,
            prop::sample::select(vec![1, LAYERS]),
        ),
        prop_oneof![Just(0), 1_u32..20],
        any::<bool>(),
        proptest::option::weighted(0.3, 1_u32..9),
        proptest::option::weighted(0.5, 1.1_f64..4.0),
    )
        .prop_map(
            |(
                (block_size, extra_blocks, seqs, extra_budget, layers),
                host_blocks,
                caching,
                threshold,
                slowdown,
            )| {
                SchedulerConfig {
                    block_size,
                    // The largest prompt has 31 tokens.
                    blocks: 1 + 31_u32.div_ceil(block_size) + extra_blocks,
                    host_blocks,
                    max_num_seqs: seqs,
                    max_num_batched_tokens: seqs + extra_budget,
                    prefix_cache: caching.then(|| HashRecipe::sha256_cbor("vllm-none-hash")),
                    policy: Policy::Priority,
                    long_prefill_token_threshold: threshold,
                    max_decode_slowdown: slowdown,
                    layers,
                    ..config()
                }
            },
        )
}

/// Plays the loads and incidents, each at its turn, until all requests have ended.
fn play(
    rig: &mut Rig,
    loads: &[Load],
    incidents: &[(u32, Incident)],
) -> Vec<Option<SequenceNumber>> {
    let mut numbers = vec![None; loads.len()];
    let mut resume_at = None;
    loop {
        for (load, number) in loads.iter().zip(&mut numbers) {
            if load.arrives == rig.turns {
                *number = Some(rig.add(load.request()));
            }
            if let (Some(number), Some(after)) = (*number, load.aborted)
                && load.arrives + after == rig.turns
            {
                rig.abort(number, Finish::Abort);
            }
        }
        if resume_at == Some(rig.turns) {
            rig.scheduler.resume();
            resume_at = None;
        }
        for (_, incident) in incidents.iter().filter(|(at, _)| *at == rig.turns) {
            match incident {
                Incident::Pause(pause, turns) => {
                    rig.scheduler.pause(*pause);
                    resume_at = Some(rig.turns + turns);
                }
                Incident::Reset => {
                    rig.scheduler.preempt_all();
                    assert!(rig.scheduler.reset_prefix_cache());
                }
            }
        }
        let stepped = rig.turn();
        let all_came = numbers.iter().all(Option::is_some);
        if !stepped && all_came && rig.scheduler.is_empty() && resume_at.is_none() {
            // When all requests were aborted before their first step, nobody has taken the events yet.
            rig.events.extend(rig.scheduler.take_events());
            return numbers;
        }
        assert!(
            stepped || !rig.scheduler.has_work() || rig.scheduler.paused().is_some(),
            "work, and no step"
        );
        // 13 requests of at most 60 steps each, one after the other, each computed anew a few times.
        assert!(rig.turns < 4_000, "some request never ends");
    }
}

/// Plays a load, and holds what came of it against what each request gets alone.
pub(super) fn check(
    mut rig: Rig,
    loads: &[Load],
    incidents: &[(u32, Incident)],
) -> Result<Rig, TestCaseError> {
    let config = rig.config.clone();
    let numbers = play(&mut rig, loads, incidents);
    prop_assert_eq!(rig.scheduler.pool().used(), 0, "blocks leaked");
    prop_assert!(rig.scheduler.deadlines.is_empty());
    prop_assert!(config.layers > 1 || rig.backend.slices == 0);
    prop_assert!(rig.backend.largest_step <= config.max_num_batched_tokens as usize);
    for (load, number) in loads.iter().zip(numbers) {
        let number = number.unwrap();
        let request = load.request();
        let (tokens, finish) = alone(&request, &config);
        let got = rig.tokens.get(&number).cloned().unwrap_or_default();
        match &rig.finished[&number] {
            Finish::Abort => {
                prop_assert!(load.aborted.is_some());
                prop_assert!(tokens.starts_with(&got));
            }
            Finish::Deadline => {
                prop_assert!(load.deadline.is_some());
                prop_assert!(tokens.starts_with(&got));
            }
            got_finish => {
                prop_assert_eq!(&got, &tokens);
                prop_assert_eq!(got_finish, &finish);
                prop_assert_eq!(rig.embeddings.contains_key(&number), load.embed);
            }
        }
        let wants_rows = request.sampling.prompt_logprobs.is_some() && !load.embed;
        if wants_rows && !got.is_empty() {
            let rows = rig.prompt_logprobs.get(&number);
            let rows = rows.map_or(&[][..], Vec::as_slice);
            let rows: Vec<f32> = rows.iter().map(|row| row.logprob).collect();
            prop_assert_eq!(rows, prompt_rows_of(&request.prompt));
        }
    }
    let stats = rig.scheduler.stats();
    prop_assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
    prop_assert_eq!(stats.queued_tokens, 0);
    if config.prefix_cache.is_none() {
        let cleared = |event: &Event<_>| *event == Event::AllBlocksCleared;
        prop_assert!(rig.events.iter().all(cleared));
    }
    Ok(rig)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever shares the engine with it, a request gets the tokens it gets alone; budgets hold in every step; every
    /// request ends; no block is lost; the gauges are a count.
    #[test]
    fn requests_get_their_own_tokens_under_any_load(
        loads in proptest::collection::vec(load(), 1..14),
        incidents in proptest::collection::vec(incident(), 0..4),
        config in limits(),
    ) {
        check(Rig::new(config), &loads, &incidents)?;
    }
}
