//! `epp config check` and `epp config show`: what a configuration is worth, without running it.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::epc::{self, Catalogue, LoadOptions};
use super::problems::ConfigErrors;
use super::resolved::ResolvedConfig;
use super::source::ConfigSource;

/// What to do instead of serving.
#[derive(Clone, PartialEq, Eq, Debug, Subcommand)]
pub enum Command {
    /// Check or show an EndpointPickerConfig.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Clone, PartialEq, Eq, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with a file, with line and column. Exit status 1 where
    /// something is.
    Check {
        file: PathBuf,
        #[command(flatten)]
        allow: Allow,
    },
    /// Print a file with every default filled in; without a file, what runs without one.
    Show {
        file: Option<PathBuf>,
        #[command(flatten)]
        allow: Allow,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Args)]
pub struct Allow {
    /// Take plugin types that are alpha.
    #[arg(long)]
    allow_experimental_plugins: bool,
}

/// Runs a command and returns its exit status: 0, or 1 where the configuration is wrong. Errors are
/// those of the writer.
pub fn run(command: &Command, catalogue: &Catalogue, out: &mut impl Write) -> io::Result<u8> {
    let Command::Config(command) = command;
    let loaded = match command {
        ConfigCommand::Check { file, allow }
        | ConfigCommand::Show {
            file: Some(file),
            allow,
        } => load(&ConfigSource::File(file.clone()), catalogue, *allow),
        ConfigCommand::Show { file: None, allow } => {
            load(&ConfigSource::FieldDefault, catalogue, *allow)
        }
    };
    let config = match loaded {
        Ok(config) => config,
        Err(errors) => {
            writeln!(out, "{errors}")?;
            return Ok(1);
        }
    };
    match command {
        ConfigCommand::Show { .. } => write!(out, "{}", epc::show(&config))?,
        ConfigCommand::Check { file, .. } => {
            for warning in &config.warnings {
                writeln!(out, "{}: warning: {warning}", file.display())?;
            }
            writeln!(
                out,
                "{}: good: {} profiles, {} plugins",
                file.display(),
                config.profiles.len(),
                config.plugins.len()
            )?;
        }
    }
    Ok(0)
}

fn load(
    source: &ConfigSource,
    catalogue: &Catalogue,
    allow: Allow,
) -> Result<ResolvedConfig, ConfigErrors> {
    let options = LoadOptions {
        allow_experimental: allow.allow_experimental_plugins,
    };
    source.load(catalogue, &options).map(|loaded| loaded.config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Flags;
    use crate::config::epc::tests::fixtures::catalogue;

    fn told(arguments: &[&str]) -> (u8, String) {
        let arguments = ["epp", "config"].iter().chain(arguments);
        let flags = Flags::try_parse_from(arguments).expect("the command parses");
        let mut out = Vec::new();
        let status = run(&flags.command.expect("a command"), &catalogue(), &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    }

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    const HEADER: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

    #[test]
    fn check_says_everything_that_is_wrong_and_fails() {
        let file = file(&format!(
            "{HEADER}plugins:\n- type: queue-scorre\n- type: \n"
        ));
        let path = file.path().to_str().unwrap();
        let (status, text) = told(&["check", path]);
        assert_eq!(status, 1);
        let expected = format!(
            "{path}:4:9: plugins[0].type: there is no plugin type \"queue-scorre\"; did you mean \"queue-scorer\"?\n{path}:5:3: plugins[1]: the field type is missing\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn check_of_a_good_file_says_so_and_warns() {
        let file = file(&format!("{HEADER}plugins: [{{type: tokenizer}}]\n"));
        let path = file.path().to_str().unwrap();
        let (status, text) = told(&["check", path]);
        assert_eq!(status, 0);
        assert!(
            text.contains("warning: plugin type tokenizer is deprecated"),
            "{text}"
        );
        assert!(text.contains(": good: 1 profiles"), "{text}");
    }

    #[test]
    fn alpha_types_need_the_flag_here_too() {
        let file = file(&format!(
            "{HEADER}plugins: [{{type: utilization-filter}}]\n"
        ));
        let path = file.path().to_str().unwrap();
        assert_eq!(told(&["check", path]).0, 1);
        assert_eq!(told(&["check", path, "--allow-experimental-plugins"]).0, 0);
    }

    #[test]
    fn show_prints_what_check_accepts() {
        let (status, text) = told(&["show"]);
        assert_eq!(status, 0);
        let file = file(&text);
        let path = file.path().to_str().unwrap();
        assert_eq!(told(&["check", path]).0, 0);
        assert_eq!(told(&["show", path]), (0, text));
    }

    #[test]
    fn file_that_is_not_there_is_named_once() {
        let (status, text) = told(&["check", "/no/such.yaml"]);
        assert_eq!(status, 1);
        assert!(
            text.starts_with("/no/such.yaml:1:1: No such file"),
            "{text}"
        );
    }
}
