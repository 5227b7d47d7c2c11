//! No text of `--kv-events-config` makes its reader panic, and an error is not longer than what it is about.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_engine::export::kv_events::KvEventsConfig;

fuzz_target!(|text: &str| {
    match KvEventsConfig::parse(text) {
        Ok(config) => {
            let _ = config.publishes();
        }
        Err(error) => assert!(error.to_string().len() < text.len() + 1024),
    }
});
