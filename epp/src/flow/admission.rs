//! The legacy admission rule: a sheddable request is refused while the pool is saturated.
//!
//! This is what the field does while its `flowControl` gate is off: only requests of negative
//! priority are ever refused, at once and with 429; everything else is sent on, whatever the load.
//! It holds no queue.

/// Saturation from which on sheddable requests are refused.
const SATURATED: f64 = 1.0;

/// Why a request is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Answered with 429 and the field's own words.
    #[error("system saturated, sheddable request dropped")]
    Saturated,
}

/// Admits everything except requests of negative `priority` at a `saturation` of 1 or more.
pub fn admit(priority: i32, saturation: f64) -> Result<(), Refused> {
    if priority < 0 && saturation >= SATURATED {
        return Err(Refused::Saturated);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sheddable_requests_are_refused_and_only_at_saturation() {
        assert_eq!(admit(-1, 1.0), Err(Refused::Saturated));
        assert_eq!(admit(-1, 0.999), Ok(()));
        assert_eq!(admit(0, 5.0), Ok(()));
        assert_eq!(admit(7, 1.0), Ok(()));
    }
}
