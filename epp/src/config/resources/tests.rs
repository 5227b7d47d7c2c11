//! Manifests as operators write them, what is refused in them, and that no bytes do harm.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const MANIFEST: &str = r#"# the pool's whole manifest
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: my-pool
spec: {selector: {matchLabels: {app: vllm}}, targetPorts: [{number: 8000}]}
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {name: chat, namespace: default, labels: {team: a}}
spec:
  priority: 5
  poolRef: {group: inference.networking.k8s.io, kind: InferencePool, name: my-pool}
status: {conditions: []}
---
# nothing here
---
apiVersion: v1
kind: List
items:
- apiVersion: llm-d.ai/v1alpha2
  kind: InferenceObjective
  metadata: {name: batch}
  spec: {priority: -10, poolRef: {name: other-pool}}
- apiVersion: llm-d.ai/v1alpha2
  kind: InferenceModelRewrite
  metadata: {name: canary, creationTimestamp: "2026-01-31T12:00:00Z"}
  spec:
    poolRef: {name: my-pool}
    rules:
    - matches: [{model: {type: Exact, value: chat}}, {model: {value: chat-old}}]
      targets: [{weight: 9, modelRewrite: v1}, {weight: 1, modelRewrite: v2}]
    - targets: [{modelRewrite: any}]
"#;

fn text_of(content: &str) -> String {
    parse("res.yaml", content.as_bytes())
        .unwrap_err()
        .to_string()
}

/// An objective whose spec is given, from line 5 on.
fn with_spec(kind: &str, spec: &str) -> String {
    format!("apiVersion: llm-d.ai/v1alpha2\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n{spec}\n")
}

#[test]
fn a_whole_manifest_is_read() {
    let resources = parse("res.yaml", MANIFEST.as_bytes()).unwrap();
    let target = |model: &str, weight| RewriteTarget {
        model: model.to_owned(),
        weight,
    };
    let canary = ModelRewrite {
        name: "canary".to_owned(),
        pool: "my-pool".to_owned(),
        created_s: Some(1_769_860_800),
        rules: vec![
            RewriteRule {
                models: vec!["chat".to_owned(), "chat-old".to_owned()],
                targets: vec![target("v1", Some(9)), target("v2", Some(1))],
            },
            RewriteRule {
                models: Vec::new(),
                targets: vec![target("any", None)],
            },
        ],
    };
    let chat = Objective {
        name: "chat".to_owned(),
        pool: "my-pool".to_owned(),
        priority: 5,
    };
    assert_eq!(resources.rewrites, std::slice::from_ref(&canary));
    assert_eq!(resources.objectives.len(), 2);
    assert_eq!(
        resources.for_pool("my-pool"),
        PoolResources {
            objectives: vec![chat],
            rewrites: vec![canary],
        }
    );
    let other = resources.for_pool("other-pool");
    assert_eq!((other.objectives.len(), other.rewrites.len()), (1, 0));
    assert_eq!(other.objectives[0].priority, -10);
    assert_eq!(
        resources.warnings,
        [
            "res.yaml, line 2 (document 1): InferencePool \"my-pool\" is left aside: only InferenceObjective and \
            InferenceModelRewrite are read here"
        ]
    );
}

#[test]
fn json_is_yaml_and_nothing_is_nothing() {
    let json = r#"{"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": "a"},
        "spec": {"poolRef": {"name": "p"}}}"#;
    let resources = parse("res.json", json.as_bytes()).unwrap();
    assert_eq!(resources.objectives[0].priority, 0);
    for nothing in [
        "",
        "---\n",
        "# comment\n---\n---\n...\n",
        "%YAML 1.2\n---\n",
    ] {
        assert_eq!(
            parse("res.yaml", nothing.as_bytes()),
            Ok(Resources::default()),
            "{nothing:?}"
        );
    }
    let not_a_border = "kind: Other\n---key: 1\n";
    let resources = parse("res.yaml", not_a_border.as_bytes()).unwrap();
    assert_eq!(resources.warnings.len(), 1);
    let list = "apiVersion: v1\nkind: List\nitems: []\n";
    assert_eq!(parse("l", list.as_bytes()), Ok(Resources::default()));
}

#[test]
fn the_older_group_gives_way_wherever_it_stands() {
    let of = |group: &str, name: &str, priority: i32| {
        format!(
            "---\napiVersion: {group}/v1alpha2\nkind: InferenceObjective\nmetadata: {{name: {name}}}\n\
            spec: {{poolRef: {{name: p}}, priority: {priority}}}\n"
        )
    };
    let (current, legacy) = ("llm-d.ai", "inference.networking.x-k8s.io");
    for content in [
        of(current, "a", 1) + &of(legacy, "a", 2) + &of(legacy, "b", 3),
        of(legacy, "b", 3) + &of(legacy, "a", 2) + &of(current, "a", 1),
    ] {
        let resources = parse("res.yaml", content.as_bytes()).unwrap();
        let mut priorities: Vec<i32> = resources
            .objectives
            .iter()
            .map(|objective| objective.priority)
            .collect();
        priorities.sort_unstable();
        assert_eq!(priorities, [1, 3]);
        assert_eq!(resources.warnings.len(), 1);
        assert!(
            resources.warnings[0].contains("\"a\""),
            "{:?}",
            resources.warnings
        );
    }
    let twice = of(current, "a", 1) + &of(current, "a", 2);
    assert_eq!(
        text_of(&twice),
        "res.yaml, line 9 (document 2): metadata.name: \"a\" is defined on line 4 already"
    );
}

fn check_refused(cases: &[(String, &str)]) {
    for (content, expected) in cases {
        let text = text_of(content);
        assert!(
            text.starts_with(&format!("res.yaml, {expected}")),
            "{text}\n{content}"
        );
    }
}

#[test]
fn errors_in_an_objective_name_line_and_path() {
    check_refused(&[
        (
            with_spec("InferenceObjective", "  poolRef: {name: p}\n  prioritty: 1"),
            "line 6 (document 1): spec.prioritty: is no field here; known are poolRef, priority",
        ),
        (
            with_spec(
                "InferenceObjective",
                "  poolRef: {name: p}\n  priority: high",
            ),
            "line 6 (document 1): spec.priority: is text, not a whole number",
        ),
        (
            with_spec(
                "InferenceObjective",
                "  poolRef: {name: p}\n  priority: 3000000000",
            ),
            "line 6 (document 1): spec.priority: 3000000000 is outside the range of 32 bits",
        ),
        (
            with_spec("InferenceObjective", "  priority: 1"),
            "line 5 (document 1): spec.poolRef: is missing",
        ),
        (
            with_spec("InferenceObjective", "  poolRef: {kind: Service, name: p}"),
            "line 5 (document 1): spec.poolRef.kind: \"Service\" is no InferencePool",
        ),
    ]);
}

#[test]
fn errors_in_a_rewrite_name_line_and_path() {
    let rules = |rules: &str| {
        with_spec(
            "InferenceModelRewrite",
            &format!("  poolRef: {{name: p}}\n  rules:\n  - {rules}"),
        )
    };
    check_refused(&[
        (
            rules("targets: [{modelRewrite: a, weight: 0}]"),
            "line 7 (document 1): spec.rules[0].targets[0].weight: 0 is not from 1 to 1000000",
        ),
        (
            rules("targets: [{weight: 1}]"),
            "line 7 (document 1): spec.rules[0].targets[0].modelRewrite: is missing",
        ),
        (
            rules("matches: [{model: {type: Prefix, value: a}}]"),
            "line 7 (document 1): spec.rules[0].matches[0].model.type: \"Prefix\" is not Exact, the one type there is",
        ),
        (
            rules("matches: [{model: {value: \"\"}}]"),
            "line 7 (document 1): spec.rules[0].matches[0].model.value: must not be empty",
        ),
        (
            rules("matches: {model: a}"),
            "line 7 (document 1): spec.rules[0].matches: is an object, not a list",
        ),
    ]);
}

#[test]
fn errors_in_what_a_document_is_name_it() {
    check_refused(&[
        (
            "---\nkind: InferenceObjective\nmetadata: {name: x}\n".to_owned(),
            "line 2 (document 1): apiVersion: is missing",
        ),
        ("a: 1\n".to_owned(), "line 1 (document 1): kind: is missing"),
        (
            "- 1\n".to_owned(),
            "line 1 (document 1): is a list, not an object",
        ),
        (
            "kind: x\n---\napiVersion: llm-d.ai/v1alpha1\nkind: InferenceObjective\n".to_owned(),
            "line 3 (document 2): apiVersion: \"llm-d.ai/v1alpha1\" is neither llm-d.ai/v1alpha2 nor \
            inference.networking.x-k8s.io/v1alpha2",
        ),
        (
            with_spec("InferenceModelRewrite", "  poolRef: {name: p}\n  rules: []")
                .replace("{name: x}", "{name: x, creationTimestamp: yesterday}"),
            "line 3 (document 1): metadata.creationTimestamp: is no time such as 2026-01-31T12:00:00Z",
        ),
        (
            with_spec("InferenceObjective", "  {}").replace("name: x", "name: x, nmae: y"),
            "line 3 (document 1): metadata.nmae: is no field here",
        ),
        (
            "kind: List\nitems: [{kind: Pod}, {kind: InferenceObjective, apiVersion: 7}]\n"
                .to_owned(),
            "line 2 (document 1): items[1].apiVersion: is a number, not text",
        ),
    ]);
}

#[test]
fn broken_yaml_is_named_by_its_line_in_the_file() {
    for (content, line) in [
        ("kind: x\n---\nkind: [1\nmore: 2\n", 3),
        ("kind: x\n---\nkind: y\nkind: z\n", 4),
        ("kind: x\n---\n\tkind: y\n", 3),
    ] {
        let Err(ResourcesError::Document {
            document,
            line: found,
            reason,
            ..
        }) = parse("res.yaml", content.as_bytes())
        else {
            panic!("{content:?} is taken")
        };
        assert_eq!(document, 2);
        assert!(found >= line, "line {found}: {reason}");
        assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
    }
}

#[test]
fn rules_without_effect_are_warned_of() {
    let content = with_spec(
        "InferenceModelRewrite",
        "  poolRef: {name: p}\n  rules:\n  - {}\n  - targets: [{modelRewrite: a}, {modelRewrite: b, weight: 1}]",
    );
    let resources = parse("res.yaml", content.as_bytes()).unwrap();
    assert_eq!(
        resources.warnings,
        [
            "res.yaml, line 7 (document 1): spec.rules[0]: has no targets, so the requests that it matches keep their model",
            "res.yaml, line 8 (document 1): spec.rules[1]: has targets with and without a weight: those without get no requests",
        ]
    );
}

#[test]
fn size_depth_and_aliases_are_bounded() {
    let large = vec![b'#'; FILE_BYTES_MAX + 1];
    assert_eq!(
        parse("f", &large),
        Err(ResourcesError::TooLarge {
            file: "f".to_owned()
        })
    );
    let deep = format!(
        "kind: x\na: {}{}\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(parse("f", deep.as_bytes()).is_err());
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (before, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        let aliases = vec![format!("*{before}"); 10].join(", ");
        writeln!(bomb, "{name}: &{name} [{aliases}]").unwrap();
    }
    assert!(parse("f", bomb.as_bytes()).is_err());
    assert!(parse("f", b"kind: \xff").is_err());
}

#[test]
fn files_are_loaded_by_their_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resources.yaml");
    assert!(matches!(load(&path), Err(ResourcesError::Read { .. })));
    std::fs::write(&path, MANIFEST).unwrap();
    assert_eq!(load(&path).unwrap().rewrites.len(), 1);
}

proptest! {
    #[test]
    fn no_bytes_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse("f", &content);
    }

    #[test]
    fn no_mutation_of_a_manifest_panics(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), "[ -~\n]{0,3}"), 0..6),
    ) {
        let mut content = MANIFEST.to_owned();
        for (at, text) in cuts {
            let at = at.index(content.len());
            content.replace_range(at..=at, &text);
        }
        let _ = parse("f", content.as_bytes());
    }
}
