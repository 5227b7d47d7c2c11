//! No text of a configuration makes the reader panic or report without bound, and what it takes it
//! takes again from its own words.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pointsman_epp::config::epc::{self, Catalogue, LoadOptions};
use pointsman_epp::config::resources;
use pointsman_epp::pipeline::catalogue::catalogue;

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(catalogue);

fuzz_target!(|text: &str| {
    let options = LoadOptions {
        allow_experimental: true,
    };
    match epc::load("fuzz", text, &CATALOGUE, &options) {
        Ok(config) => {
            let shown = epc::show(&config);
            let mut again = epc::load("shown", &shown, &CATALOGUE, &options)
                .unwrap_or_else(|errors| panic!("{errors}\n{shown}"));
            again.warnings.clone_from(&config.warnings);
            assert_eq!(again, config, "{shown}");
        }
        Err(errors) => assert!(errors.to_string().len() < 64 << 10),
    }
    let _ = resources::parse("fuzz", text.as_bytes());
});
