//! epp learns of responses from Envoy's access log: what it then knows, what is lost with the log, and what a crash of
//! epp no longer costs. One module each.
//!
//! What an entry holds and when Envoy writes it is Envoy's doing, so these run on each version that the templates are
//! tested with.

mod crash;
mod ends;
mod losses;

use anyhow::Result;
use pointsman_loadtest::stack::{EnvoyChoice, StackOptions, TESTED_VERSIONS};
use pointsman_tests::client::Response;

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
