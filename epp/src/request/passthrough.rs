//! `passthrough-parser`: bodies of any kind, none of them looked at.
//!
//! What no other parser in use knows passes through anyway; alone in a configuration this parser
//! says that nothing is to be read.

use super::parsers::ParserType;

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "passthrough-parser";

/// The plugin type.
pub(super) const TYPE: ParserType = ParserType::new(TYPE_NAME, &[]);
