//! epp learns of responses from Envoy's access log: what it then knows, what is lost with the log, and what a crash of
//! epp no longer costs. One module each.
//!
//! What an entry holds and when Envoy writes it is Envoy's doing, so these run on each version that the templates are
//! tested with.

mod crash;
mod ends;
mod entries;
mod losses;

use anyhow::Result;
use http_body_util::{BodyExt, Full};
use pointsman_loadtest::stack::{EnvoyChoice, FilterPlace, StackOptions, TESTED_VERSIONS};
use pointsman_tests::client::Response;
use pointsman_tests::upstream::{Answer, Received};
use serde_json::json;

/// Runs `test` on each Envoy, one after the other; a failure names the version.
async fn on_each_envoy(test: impl AsyncFn(StackOptions) -> Result<()>) -> Result<()> {
    for version in TESTED_VERSIONS {
        let options = StackOptions::new()
            .workers(0)
            .envoy(EnvoyChoice::Version(version.to_owned()));
        let ended = test(options).await;
        ended.map_err(|error| error.context(format!("Envoy {version}")))?;
    }
    Ok(())
}

/// The rest of a streamed chat, which has to end as such a stream ends.
async fn read_to_done(response: Response) -> Result<()> {
    let events = response.events().await?;
    let last = events.last().map(|event| event.data.as_str());
    anyhow::ensure!(last == Some("[DONE]"), "the last event is {last:?}");
    Ok(())
}

/// Larger than what Envoy's filters would buffer at the most: none may hold it back.
async fn whole_answer(_request: Received) -> Answer {
    let body = json!({
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "a".repeat(2 << 20)}}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32},
    });
    let mut response = http::Response::new(Full::from(body.to_string()).boxed());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    Ok(response)
}

/// Lets one request pass behind epp, and no other within the hour.
fn rate_limited(options: StackOptions) -> StackOptions {
    let always = json!({"default_value": {"numerator": 100}});
    let filter = json!({
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "test",
            "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
            "filter_enabled": always,
            "filter_enforced": always,
        },
    });
    options.filter(FilterPlace::AfterPick, filter)
}

/// Puts an address that nobody has in the place of epp's pick.
fn led_astray(options: StackOptions) -> StackOptions {
    let filter = json!({
        "name": "envoy.filters.http.set_metadata",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
            "metadata": [{
                "metadata_namespace": "envoy.lb",
                "value": {"x-gateway-destination-endpoint": "127.0.0.1:1"},
                "allow_overwrite": true,
            }],
        },
    });
    options.filter(FilterPlace::AfterPick, filter)
}
