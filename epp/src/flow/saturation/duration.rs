//! Durations as plugin parameters: strings in Go's notation, such as `200ms`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

use crate::config::values;

pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    // Exact to the microsecond, and in the unit that an operator would write.
    let micros = value.as_micros();
    if micros.is_multiple_of(1_000) {
        return to.serialize_str(&format!("{}ms", micros / 1_000));
    }
    to.serialize_str(&format!("{micros}us"))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    values::duration(&text).map_err(de::Error::custom)
}
