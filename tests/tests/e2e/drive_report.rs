//! The report of `loadtest drive` in a real browser: load through Envoy and epp, and the page that comes of it.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pointsman_loadtest::stack::{Binaries, Profile, Stack, StackOptions};
use pointsman_tests::browser::Browser;
use serde_json::Value;

const WORKERS: usize = 3;
/// Chats that are over soon.
const CHATS: &str = r#"{"turns": 3, "think_seconds": 0.05,
    "system": {"mean": 60, "sigma": 0.2, "most": 100}, "message": {"mean": 40, "sigma": 0.5, "most": 80},
    "answer": {"mean": 12, "sigma": 0.5, "most": 40}}"#;

/// Drawn: it has a size, and each of its lines goes through two points or more.
const DRAWN: &str = "[...document.querySelectorAll('figure svg')].filter(svg => {
    const box = svg.getBoundingClientRect();
    const lines = [...svg.querySelectorAll('polyline')];
    return box.width > 100 && box.height > 50 && lines.length > 0
        && lines.every(line => line.points.numberOfItems > 1 && line.getBBox().width > 0);
}).map(svg => svg.closest('figure').querySelector('figcaption').innerText)";

/// The names beside the bars of the first plot of this title, and how many of the bars can be seen.
const BARS: &str = "(() => {
    const named = figure => figure.querySelector('figcaption').innerText.startsWith('Load by worker');
    const figure = [...document.querySelectorAll('figure')].find(named);
    const rows = [...figure.querySelectorAll('tr')];
    return rows.filter(row => row.querySelector('span').getBoundingClientRect().width > 0)
        .map(row => row.querySelector('th').innerText);
})()";

#[tokio::test]
async fn the_page_of_a_run_through_the_gateway_is_drawn_and_asks_nobody() -> Result<()> {
    let options = StackOptions::new()
        .workers(WORKERS)
        .worker_flag("--backend=sim")
        .worker_flag("--sim-speedup=50");
    let stack = Stack::start(options).await?;
    let page = stack.folder().join("report.html");
    let report = drive(&stack, &page).await?;
    let addresses: Vec<String> = stack
        .workers()
        .iter()
        .map(|worker| worker.address().to_string())
        .collect();
    // Which of them get anything depends on how fast this machine is: an idle one that holds the prompt is picked again.
    let mut served = Vec::new();
    for run in report["runs"].as_array().context("no runs")? {
        let workers = run["workers"].as_array().context("no workers")?;
        let names = workers.iter().filter_map(|one| one["name"].as_str());
        let names: Vec<String> = names.map(str::to_owned).collect();
        assert!(!names.is_empty() && names.is_sorted(), "{names:?}");
        assert!(
            names.iter().all(|name| addresses.contains(name)),
            "Envoy names the worker that served: {names:?} of {addresses:?}"
        );
        let requests = workers.iter().filter_map(|one| one["requests"].as_u64());
        assert_eq!(Some(requests.sum()), run["succeeded"].as_u64());
        served.push(names);
    }

    let url = format!("file://{}", page.display());
    let mut browser = Browser::open(&url).await?;
    let drawn = strings(&browser.evaluate(DRAWN).await?);
    for title in [
        "Goodput against rate",
        "TTFT against rate",
        "Time to the first token, cumulative",
        "Between tokens, cumulative",
        "End to end, cumulative",
        "TTFT over time",
        "Requests over time",
        "Cached share of prompts",
    ] {
        assert!(drawn.iter().any(|one| one == title), "{title}: {drawn:?}");
    }
    let all = "document.querySelectorAll('figure svg').length";
    assert_eq!(browser.evaluate(all).await?, drawn.len(), "{drawn:?}");
    assert_eq!(strings(&browser.evaluate(BARS).await?), served[0]);
    // A page that is narrow shows all of it as well.
    browser.resize(400, 800).await?;
    let wide = "document.documentElement.scrollWidth";
    assert!(browser.evaluate(wide).await?.as_u64() <= Some(400));
    assert_eq!(browser.requests(), [url.as_str()]);
    assert!(
        browser.complaints().is_empty(),
        "{:?}",
        browser.complaints()
    );
    Ok(())
}

async fn drive(stack: &Stack, page: &std::path::Path) -> Result<Value> {
    let binaries = Binaries::build(Profile::own()).await?;
    let output = tokio::process::Command::new(&binaries.loadtest)
        .args(["drive", "--workload=multi-turn", "--rates=20,40"])
        .args(["--requests=90", "--parameters", CHATS, "--json"])
        .arg(format!("--url={}", stack.gateway().url()))
        .arg(format!("--html={}", page.display()))
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}");
    let last = text.lines().last().context("nothing printed")?;
    Ok(serde_json::from_str(last)?)
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let texts = list.iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}
