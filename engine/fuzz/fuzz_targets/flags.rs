//! No command line makes a flag's reader panic. A line of the input is an argument.

#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use pointsman_engine::flags::Flags;

fuzz_target!(|text: &str| {
    let arguments = ["engine", "--model", "m"].into_iter().chain(text.lines());
    let _ = Flags::try_parse_from(arguments);
});
