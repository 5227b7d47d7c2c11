//! The `openai` Python client against the whole stack: what most users of such an API really run.
//!
//! The script holds the assertions; this runs it and shows what it printed when they fail.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions};
use pointsman_tests::witness::Witness;
use tokio::process::Command;

use crate::packages::{openai, run};

const SCRIPT_DEADLINE: Duration = Duration::from_mins(2);

#[tokio::test]
async fn the_openai_client_talks_through_the_whole_stack() -> Result<()> {
    let packages = openai().await?;
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/openai_client.py");
    let mut python = Command::new("python3");
    python
        .arg(script)
        .args([&format!("http://{}/v1", stack.listener()), MODEL_NAME])
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run(&mut python, SCRIPT_DEADLINE).await?;
    // The script cancelled a stream and ran others at once; nothing of that may linger.
    stack.nothing_in_flight().await;
    Ok(())
}
