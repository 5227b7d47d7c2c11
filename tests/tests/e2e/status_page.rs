//! The status page in a real browser: what an operator sees, without touching the page, as things happen.

use anyhow::Result;
use pointsman_loadtest::stack::{Stack, StackOptions};
use pointsman_tests::browser::Browser;
use pointsman_tests::chat::Chat;
use pointsman_tests::witness::Witness;
use serde_json::json;

fn page_of(stack: &Stack) -> String {
    let url = stack.epp().metrics_url();
    url.trim_end_matches("metrics").to_owned()
}

#[tokio::test]
async fn the_page_shows_endpoints_and_each_pick_as_it_happens() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    let mut browser = Browser::open(&page_of(&stack)).await?;
    browser
        .until_text("#pool-0", "2 of 2 endpoints healthy")
        .await;
    for worker in stack.workers() {
        let address = worker.address().to_string();
        browser.until_text("#pool-0 tbody", &address).await;
    }
    browser
        .until_text("#decisions", "No request has come yet.")
        .await;
    browser.until_text("#link", "live").await;

    // The page itself must learn of the pick: nobody reloads it.
    browser.evaluate("window.untouched = true").await?;
    stack.ask(&Chat::new().user("Which track is free?")).await?;
    browser.until_text("#decisions summary", "picked in").await;
    browser
        .evaluate("document.querySelector('#decisions details').open = true")
        .await?;
    let pick = browser.until_text("#decisions details", "status 200").await;
    assert!(pick.contains("queue-scorer × 2"), "{pick}");
    for score in [
        "queue-scorer",
        "kv-cache-utilization-scorer",
        "prefix-cache-scorer",
    ] {
        assert!(pick.contains(score), "{score}\n{pick}");
    }
    let rows = "document.querySelectorAll('#decisions details:first-of-type tbody tr').length";
    assert_eq!(browser.evaluate(rows).await?, 2, "both candidates");
    let values = "[...document.querySelectorAll('#decisions tbody tr.picked td.n')].map(cell => Number(cell.innerText))";
    let values = browser.evaluate(values).await?;
    let values = values.as_array().map_or(&[][..], Vec::as_slice);
    assert!(
        values.len() >= 5 && values.iter().all(serde_json::Value::is_number),
        "{values:?}"
    );

    // What was unfolded stays so over refreshes, and the page was never loaded anew.
    stack.ask(&Chat::new().user("And now?")).await?;
    let count = "document.querySelectorAll('#decisions > details').length";
    browser.until(count, &json!(2)).await;
    let unfolded = "document.querySelectorAll('#decisions > details[open]').length";
    assert_eq!(browser.evaluate(unfolded).await?, 1);
    assert_eq!(browser.evaluate("window.untouched").await?, true);
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_dies_is_the_first_thing_to_be_read() -> Result<()> {
    let mut stack = Stack::start(StackOptions::new().workers(2)).await?;
    let mut browser = Browser::open(&page_of(&stack)).await?;
    browser.until_text("#problems", "No problems.").await;
    stack.workers()[0].kill().await?;
    browser.until_text("#problems", "is unhealthy").await;
    browser.until_text("main", "1 of 2 endpoints healthy").await;
    let first = "document.querySelector('main > section').id";
    assert_eq!(browser.evaluate(first).await?, "problems");
    let sick = "document.querySelector('tbody tr td.bad') !== null";
    assert_eq!(browser.evaluate(sick).await?, true);

    stack.epp_mut().kill().await?;
    browser
        .until_text("#link", "no answer from the picker")
        .await;
    Ok(())
}

/// Tables scroll within their place; the page as a whole never sideways.
#[tokio::test]
async fn a_narrow_screen_needs_no_sideways_scrolling() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(1)).await?;
    stack.ask(&Chat::new().user("Which track is free?")).await?;
    let mut browser = Browser::open(&page_of(&stack)).await?;
    browser.until_text("#decisions summary", "picked in").await;
    browser.resize(360, 740).await?;
    let fits = "document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(browser.evaluate(fits).await?, true);
    Ok(())
}
