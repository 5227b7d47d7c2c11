//! No access-log entry that a gateway could send makes the reader panic.

#![no_main]

use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use libfuzzer_sys::fuzz_target;
use pointsman_epp::ext_proc::access_log;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(entry) = HttpAccessLogEntry::decode(bytes) {
        let _ = access_log::read(&entry);
    }
});
