//! Sliding windows: which layers let a token see only the last few tokens, as each family's configuration says it.

use super::ModelError;
use super::raw::{File, Raw, Window};

/// What `layer_types` may hold.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// The reference implementation's window where a family has windows and a file does not say how long.
pub(super) const DEFAULT_SIZE: usize = 4096;

/// No window in any layer.
pub(super) fn none(layers: usize) -> Vec<Option<usize>> {
    vec![None; layers]
}

/// The same window in all layers: `sliding_window`, none where that is null, and `unwritten` where it is not written.
///
/// # Errors
/// When the window is empty, or `layer_types` is there: these families' layers are all of one kind.
pub(super) fn everywhere(
    raw: &Raw,
    layers: usize,
    unwritten: Option<usize>,
    file: &File,
) -> Result<Vec<Option<usize>>, ModelError> {
    file.refuse("layer_types", raw.layer_types.is_some())?;
    Ok(vec![size(raw, unwritten, file)?; layers])
}

/// Qwen's way: no windows unless `use_sliding_window`; then in the layers that `layer_types` names, or, in files
/// without, from `max_window_layers` on.
///
/// # Errors
/// When the window is missing or empty, or `layer_types` does not fit the layers.
pub(super) fn qwen(
    raw: &Raw,
    layers: usize,
    file: &File,
) -> Result<Vec<Option<usize>>, ModelError> {
    let kinds = raw.layer_types.as_deref();
    if let Some(kinds) = kinds {
        if kinds.len() != layers {
            let reason = format!("has {} entries for {layers} layers", kinds.len());
            return Err(file.wrong("layer_types", reason));
        }
        if let Some(other) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            let reason = format!("{other} is not supported; supported: {KINDS:?}");
            return Err(file.wrong("layer_types", reason));
        }
    }
    let slides = |layer: usize| match kinds {
        Some(kinds) => kinds.get(layer).is_some_and(|kind| kind == KINDS[1]),
        // The default of the reference implementation.
        None => layer >= raw.max_window_layers.unwrap_or(28),
    };
    if raw.use_sliding_window != Some(true) {
        // Layers that slide over nothing see everything.
        return Ok(none(layers));
    }
    let window = size(raw, Some(DEFAULT_SIZE), file)?;
    let of_layer = |layer| window.filter(|_| slides(layer));
    Ok((0..layers).map(of_layer).collect())
}

/// The window's length: as written, none where it is null, and `unwritten` where it is not written.
fn size(raw: &Raw, unwritten: Option<usize>, file: &File) -> Result<Option<usize>, ModelError> {
    let window = match raw.sliding_window {
        Window::Unwritten => unwritten,
        Window::Null => None,
        Window::Tokens(tokens) => Some(tokens),
    };
    let checked = window.map(|window| file.positive("sliding_window", Some(window)));
    checked.transpose()
}
