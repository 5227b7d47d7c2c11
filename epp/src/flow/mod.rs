//! Admission: whether a request may be scheduled now, given how full the pool is.
//!
//! [`saturation()`] turns a snapshot into one number, [`admission`] turns that number and a request's
//! priority into a yes or a no. Both are pure.

pub mod admission;
pub mod saturation;

pub use admission::{Refused, admit};
pub use saturation::{UtilizationDetector, saturation};
