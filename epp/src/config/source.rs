//! Where an EndpointPickerConfig comes from, and loading it from there.

use std::path::{Path, PathBuf};

use super::epc::{self, CONFIG_BYTES_MAX, Catalogue, LoadOptions};
use super::problems::ConfigErrors;
use super::resolved::ResolvedConfig;
use super::watch;

/// Where a pool's EndpointPickerConfig comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigSource {
    /// There is none: what the field runs without one.
    FieldDefault,
    /// Our own policy.
    ExpectedTtft,
    /// A file, followed while it changes.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

/// A configuration, and what to go on with.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadedConfig {
    pub config: ResolvedConfig,
    /// The file and its content, for [`Reload::new`](super::watch::Reload::new); `None` where there
    /// is nothing to follow.
    pub followed: Option<(PathBuf, String)>,
}

impl ConfigSource {
    /// Reads and resolves the configuration.
    pub fn load(
        &self,
        catalogue: &Catalogue,
        options: &LoadOptions,
    ) -> Result<LoadedConfig, ConfigErrors> {
        match self {
            Self::FieldDefault => Ok(LoadedConfig {
                config: epc::field_default(catalogue)?,
                followed: None,
            }),
            Self::ExpectedTtft => Ok(LoadedConfig {
                config: epc::load("--policy", epc::EXPECTED_TTFT, catalogue, options)?,
                followed: None,
            }),
            Self::Text(text) => Ok(LoadedConfig {
                config: epc::load("--config-text", text, catalogue, options)?,
                followed: None,
            }),
            Self::File(path) => {
                let text = read(path, CONFIG_BYTES_MAX)?;
                let label = path.display().to_string();
                Ok(LoadedConfig {
                    config: epc::load(&label, &text, catalogue, options)?,
                    followed: Some((path.clone(), text)),
                })
            }
        }
    }
}

/// Reads a file of at most `most` bytes.
pub(super) fn read(path: &Path, most: usize) -> Result<String, ConfigErrors> {
    watch::read(path, most).map_err(|error| {
        let label = path.display().to_string();
        // The label says the name already.
        let reason = error.strip_prefix(&format!("{label}: ")).unwrap_or(&error);
        ConfigErrors::whole(&label, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::epc::tests::fixtures::catalogue;

    #[test]
    fn each_source_loads_and_only_a_file_is_followed() {
        let options = LoadOptions::default();
        let load = |source: ConfigSource| source.load(&catalogue(), &options);
        let default = load(ConfigSource::FieldDefault).unwrap();
        let text = ConfigSource::Text(epc::FIELD_DEFAULT.to_owned());
        assert_eq!(load(text).unwrap(), default);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), epc::FIELD_DEFAULT).unwrap();
        let path = file.path().to_owned();
        let loaded = load(ConfigSource::File(path.clone())).unwrap();
        assert_eq!(loaded.config, default.config);
        assert_eq!(loaded.followed, Some((path, epc::FIELD_DEFAULT.to_owned())));
    }

    #[test]
    fn errors_name_the_source() {
        let options = LoadOptions::default();
        let error = |source: ConfigSource| {
            let errors = source.load(&catalogue(), &options).unwrap_err();
            errors.to_string()
        };
        assert!(error(ConfigSource::Text("[]".into())).starts_with("--config-text:1:1: "));
        assert!(error(ConfigSource::File("/no/such".into())).starts_with("/no/such:1:1: No such"));
    }
}
