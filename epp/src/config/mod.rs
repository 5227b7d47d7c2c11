//! What the operator says: flags and environment, raw first and then checked.
//!
//! [`flags`] is what may be written on the command line, close to the field's own so that an
//! operator who comes from another picker changes the image and nothing else. [`settings`] is what
//! the rest of the house gets: typed, complete, and refused with one clear line where it makes no
//! sense. [`values`] reads single values.
//!
//! Files are read strictly ([`yaml`], [`fields`], [`problems`]): [`epc`] the scheduling
//! configuration, [`pools`] the list of pools. [`watch`] follows them while the program runs, and
//! [`commands`] checks and shows them without running it.

pub mod commands;
pub mod epc;
pub mod fields;
pub mod flags;
pub mod foreign_flags;
pub mod model_server_flags;
pub mod plugins;
pub mod pools;
pub mod problems;
pub mod producers;
pub mod resolved;
pub mod resources;
pub mod settings;
pub mod source;
pub mod tls;
pub mod values;
pub mod watch;
pub mod yaml;

pub use flags::Flags;
pub use pools::PoolSettings;
pub use settings::{
    EndpointSource, LogFormat, LogLevel, PolicyName, ResponseWatch, Settings, SettingsError,
    TokenizerFolder,
};
pub use source::{ConfigSource, LoadedConfig};
pub use tls::{TlsMode, TlsOptions};
