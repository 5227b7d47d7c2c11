//! The README against the program: every plugin type and parameter, every flag, every series and
//! every header that the program knows has its place in `epp/README.md`.
//!
//! A table that somebody has to remember is wrong within weeks. What stands in a row is for people
//! to keep true; that no row is missing is held here. A name counts where it stands alone: a name
//! that is a part of a longer one does not. And whoever
//! is told that a test shows something finds that test.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use clap::CommandFactory;
use pointsman_epp::clock::Clock;
use pointsman_epp::config::Flags;
use pointsman_epp::config::epc;
use pointsman_epp::fleet::Fleet;
use pointsman_epp::observe::exposition::Page;
use pointsman_epp::observe::flow::FlowView;
use pointsman_epp::observe::{Metrics, flow, pool};
use pointsman_epp::pipeline::assembly::Counts;
use pointsman_epp::pipeline::catalogue::catalogue;
use pointsman_epp::pipeline::{Policy, Pool, Rooms, page};
use pointsman_epp::schedule::latency::LatencyOptions;
use pointsman_proto::headers;
use serde_json::Value;

const README: &str = include_str!("../README.md");

/// Parameters without a default are no part of the filled-in parameters, so they are named here.
const REQUIRED: &[&str] = &["minCeiling", "algorithm", "label", "validValues"];

#[test]
fn every_plugin_type_is_in_the_readme() {
    let catalogue = catalogue();
    let fields = epc::FIELD_TYPES.iter().map(|(name, ..)| *name);
    let ours = catalogue.types().map(|plugin| plugin.name);
    assert_told("plugin types", fields.chain(ours));
}

#[test]
fn every_parameter_is_in_the_readme() {
    let catalogue = catalogue();
    let mut names = Vec::new();
    for plugin in catalogue.types() {
        if let Ok(defaults) = (plugin.check)(&Value::Null) {
            collect_fields(&defaults, &mut names);
        }
    }
    assert!(names.len() > 50, "only {} parameters", names.len());
    let names = names.iter().map(String::as_str);
    assert_told("parameters", names.chain(REQUIRED.iter().copied()));
}

#[test]
fn every_flag_is_in_the_readme() {
    let command = Flags::command();
    let flags: Vec<String> = command
        .get_arguments()
        .flat_map(|flag| {
            let aliases = flag.get_all_aliases().unwrap_or_default();
            flag.get_long().into_iter().chain(aliases)
        })
        .map(|name| format!("--{name}"))
        .collect();
    assert!(flags.len() > 50, "only {} flags", flags.len());
    assert_told("flags", flags.iter().map(String::as_str));
}

#[test]
fn every_series_is_in_the_readme() {
    let written = fresh_page();
    let families: Vec<&str> = written
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(families.len() > 100, "only {} families", families.len());
    assert_told("series", families.into_iter());
}

#[test]
fn every_header_that_the_picker_owns_is_in_the_readme() {
    assert_told(
        "headers",
        headers::SYSTEM_OWNED
            .into_iter()
            .chain(headers::AGENT_SESSIONS),
    );
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let (_, claims) = README
        .split_once("## What users of other pickers complained about")
        .expect("the README says what users complained about");
    let is_test = |name: &&str| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.chars().all(is_word)
            && name.matches('_').count() >= 3
            && !name.starts_with("pointsman_")
            && *name != "access_log_flush_interval"
    };
    let named: Vec<&str> = claims
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(is_test)
        .collect();
    assert!(named.len() > 40, "only {} tests", named.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = String::new();
    for folder in ["epp/src", "epp/tests", "proto/src", "tests/tests"] {
        read_sources(&root.join(folder), &mut sources);
    }
    let missing: Vec<&&str> = named
        .iter()
        .filter(|name| !sources.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "these tests do not exist: {missing:#?}");
}

fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).expect("a readable source folder") {
        let path = entry.expect("a readable folder entry").path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path).expect("a readable source file"));
        }
    }
}

/// A metrics page before the first request: the heading of every family stands there.
fn fresh_page() -> String {
    let (clock, metrics) = (Clock::monotonic(), Arc::new(Metrics::new()));
    let pool = Pool::connect(
        "default",
        Rooms::over(Fleet::new()),
        Policy::field_default(0).expect("the default configuration makes a policy"),
        LatencyOptions::default(),
        &metrics,
        &clock,
    );
    let mut text = Page::new();
    metrics.write(&mut text);
    pool::render(&[], &mut text);
    flow::render(&FlowView::default(), &mut text);
    page::render_pools(&[Arc::new(pool)], &Counts::default(), &mut text);
    text.into_text()
}

/// The names of all fields, those of nested objects included.
fn collect_fields(value: &Value, names: &mut Vec<String>) {
    let Some(fields) = value.as_object() else {
        return;
    };
    for (name, value) in fields {
        names.push(name.clone());
        collect_fields(value, names);
    }
}

/// Panics with the names that the README does not have, each once.
fn assert_told<'a>(what: &str, names: impl Iterator<Item = &'a str>) {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let told: HashSet<&str> = README
        .split(|c| !is_of_a_name(c))
        .filter(|word| !word.is_empty())
        .collect();
    let mut missing: Vec<&str> = names.filter(|name| !told.contains(name)).collect();
    missing.sort_unstable();
    missing.dedup();
    assert!(
        missing.is_empty(),
        "epp/README.md lacks these {what}: {missing:#?}"
    );
}
