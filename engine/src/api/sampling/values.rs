//! Numbers against their ranges.

use super::Limits;
use crate::api::error::ApiError;

/// A number of most likely tokens to list; -1 asks for the whole vocabulary.
pub(super) fn top_count(
    field: &str,
    asked: Option<i64>,
    limits: &Limits<'_>,
) -> Result<Option<u32>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    let size = i64::from(limits.vocabulary.size);
    let most = match limits.max_logprobs {
        ..0 => size,
        most => most.min(size),
    };
    let top = if asked == -1 { size } else { asked };
    if !(0..=most).contains(&top) {
        let problem = format!("must ask for 0 to {most} tokens (--max-logprobs), got {asked}");
        return Err(ApiError::field(field, problem));
    }
    Ok(Some(top as u32))
}

/// A count of at least `min` that fits 32 bits.
pub(super) fn count(field: &str, value: i64, min: u32) -> Result<u32, ApiError> {
    u32::try_from(value)
        .ok()
        .filter(|value| *value >= min)
        .ok_or_else(|| ApiError::field(field, format!("must be at least {min}, got {value}")))
}

pub(super) fn number(
    field: &str,
    value: f32,
    allowed: impl Fn(f32) -> bool,
    range: &str,
) -> Result<f32, ApiError> {
    if allowed(value) {
        return Ok(value);
    }
    Err(ApiError::field(
        field,
        format!("must be {range}, got {value}"),
    ))
}

pub(super) fn penalty(field: &str, value: Option<f32>) -> Result<f32, ApiError> {
    let allowed = |value| (-2.0..=2.0).contains(&value);
    number(field, value.unwrap_or(0.0), allowed, "between -2 and 2")
}
