//! Each formula on three workers: who holds the prompt, who is swamped, who is unknown.

use pointsman_epp::fleet::{EndpointSpec, Fleet, Live};

use super::*;

/// Three workers; held is what each has of the prompt, own what we have there.
fn pick(policy: &str, held: [u32; 3], own: [OwnLoad; 3], truth: &[Option<Weight>]) -> usize {
    let fleet = Fleet::new();
    let specs = (0..3_u8).map(|n| EndpointSpec::new(format!("w{n}"), ([10, 0, 0, n], 8000).into()));
    fleet.apply(specs.collect()).unwrap();
    let mut snapshot = Snapshot::default();
    fleet.snapshot_into(&mut snapshot);
    let mut matches = Matches::default();
    for (member, held) in snapshot.members.iter().zip(held) {
        matches.record(member.id, member.generation, held, held);
    }
    for (live, own) in snapshot.live.iter_mut().zip(own) {
        *live = Live {
            healthy: true,
            in_flight_requests: own.requests,
            in_flight_tokens: own.prefill_tokens as u32,
            waiting: own.requests,
            scraped_at_ms: 1,
            block_size: 16,
            blocks: 1_000,
            ..Live::default()
        };
    }
    let tokens = vec![7; 1_600];
    let asked = Asked {
        tokens: &tokens,
        session: 5,
        seed: 3,
        truth,
    };
    let view = View {
        snapshot: &snapshot,
        matches: &matches,
        own: &own,
        asked: &asked,
        now: Duration::from_millis(1),
    };
    Policy::named(policy).unwrap().pick(&view).unwrap().position
}

fn load(requests: u32, tokens: u64) -> OwnLoad {
    OwnLoad {
        requests,
        prompts: requests,
        prefill_tokens: tokens,
        context_tokens: tokens,
    }
}

const IDLE: OwnLoad = OwnLoad {
    requests: 0,
    prompts: 0,
    prefill_tokens: 0,
    context_tokens: 0,
};

#[test]
fn who_holds_the_prompt_gets_it_and_who_is_swamped_does_not() {
    let cached = [
        "dynamo",
        "dynamo-lmetric",
        "smg",
        "aibrix",
        "sglang-cache-aware",
        "vllm-kv-aware",
        "precise-prefix",
    ];
    for policy in cached {
        assert_eq!(pick(policy, [0, 1_584, 0], [IDLE; 3], &[]), 1, "{policy}");
    }
    let swamped = [IDLE, load(100, 160_000), load(90, 160_000)];
    for policy in [
        "dynamo",
        "dynamo-lmetric",
        "smg",
        "aibrix",
        "sglang-cache-aware",
        "least-request",
    ] {
        let picked = pick(policy, [0, 1_584, 0], swamped, &[]);
        assert_ne!(picked, 1, "{policy}");
    }
    assert_eq!(pick("vllm-kv-aware", [0, 1_584, 0], swamped, &[]), 1);
}

#[test]
fn the_oracle_follows_the_truth() {
    let truth = [(3.0, 0.0), (1.5, 0.9), (2.0, 0.0)].map(|(ahead_s, kv)| {
        Some(Weight {
            ahead_s,
            own_s: 0.1,
            kv,
        })
    });
    assert_eq!(pick("oracle", [1_584, 0, 0], [IDLE; 3], &truth), 2);
}

#[test]
fn names_are_known_and_others_are_refused() {
    for name in NAMES {
        assert!(Policy::named(name).is_ok(), "{name}");
    }
    for wrong in [
        "best",
        "random:x=1",
        "expected-ttft:nonsense=1",
        "expected-ttft:x",
        "file:/no/such",
    ] {
        assert!(Policy::named(wrong).is_err(), "{wrong}");
    }
    assert!(Policy::named("expected-ttft:delayOfOthers=0").is_ok());
}
