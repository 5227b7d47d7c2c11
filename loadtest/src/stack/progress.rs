//! Tells whoever waits which part is starting. The demo prints it; the tests keep silent.

/// Hears about each part as it starts.
pub trait Progress: Sync {
    /// `part` is being started.
    fn begin(&self, part: &str);
    /// The part named last is ready.
    fn ready(&self);
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _part: &str) {}
    fn ready(&self) {}
}
