//! The checked settings: everything the parts need, typed and complete.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use super::flags::Flags;

/// What this process was asked to do.
#[derive(Clone, Debug)]
pub struct Settings {
    pub endpoints: EndpointSource,
    pub refresh_metrics_interval: Duration,
    pub metrics_staleness_threshold: Duration,
    pub tokenizers: Vec<TokenizerFolder>,
    /// Endpoints named after the picked one.
    pub fallback_endpoints: usize,
    pub use_subset_hint: bool,
    pub emit_scores: bool,
    pub ext_proc_address: SocketAddr,
    pub health_address: SocketAddr,
    pub metrics_address: SocketAddr,
    pub tls: TlsMode,
    pub max_request_body_bytes: usize,
    pub decision_timeout: Duration,
    pub max_concurrent_streams: u32,
    pub receive_message_bytes: usize,
    pub send_message_bytes: usize,
    pub drain_timeout: Duration,
    pub log_format: LogFormat,
    pub log_level: LogLevel,
    /// Flags that were given and do nothing.
    pub ignored_flags: Vec<&'static str>,
}

/// Where the endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSource {
    /// One text for each, for discovery to read.
    Static(Vec<String>),
    File(PathBuf),
}

/// How the ext_proc port is secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    ClearText,
    SelfSigned,
    /// A folder with `tls.crt` and `tls.key`.
    Certificate(PathBuf),
}

/// A model folder and the model whose prompts it encodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFolder {
    /// `None`: every model that has no folder of its own.
    pub model: Option<String>,
    pub folder: PathBuf,
}

impl FromStr for TokenizerFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (model, folder) = match text.split_once('=') {
            Some((model, folder)) => (Some(model), folder),
            None => (None, text),
        };
        if folder.is_empty() || model.is_some_and(str::is_empty) {
            return Err(format!(
                "`{text}` names no folder: write FOLDER or MODEL=FOLDER"
            ));
        }
        Ok(Self {
            model: model.map(str::to_owned),
            folder: PathBuf::from(folder),
        })
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line for each event.
    #[value(alias = "console")]
    Text,
    /// One JSON object for each event.
    Json,
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Warn,
    Info,
    Debug,
    Trace,
}

/// Flags that make no sense, alone or together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("no workers: name them with --endpoint IP:PORT or --endpoints-file PATH")]
    NoEndpoints,
    #[error("--tokenizer is given twice for {model}")]
    DuplicateTokenizer { model: String },
    #[error("--{flag} must be larger than zero")]
    Zero { flag: &'static str },
    #[error("--cert-path needs --secure-serving")]
    CertificateInClearText,
    #[error("{flag} is not supported: {instead}")]
    Unsupported {
        flag: &'static str,
        instead: &'static str,
    },
}

/// What a message carries beside the body it is sized for.
const MESSAGE_OVERHEAD_BYTES: usize = 1024 * 1024;

impl TryFrom<Flags> for Settings {
    type Error = SettingsError;

    fn try_from(flags: Flags) -> Result<Self, SettingsError> {
        if let Some((flag, instead)) = flags.foreign.refused() {
            return Err(SettingsError::Unsupported { flag, instead });
        }
        check_above_zero(&flags)?;
        check_tokenizers(&flags.tokenizers)?;
        let tls = tls_mode(&flags)?;
        let address = |port| SocketAddr::new(flags.bind_address, port);
        let default_receive_bytes = flags
            .max_request_body_bytes
            .saturating_add(MESSAGE_OVERHEAD_BYTES);
        Ok(Self {
            ext_proc_address: address(flags.grpc_port),
            health_address: address(flags.grpc_health_port),
            metrics_address: address(flags.metrics_port),
            tls,
            refresh_metrics_interval: flags.refresh_metrics_interval,
            metrics_staleness_threshold: flags.metrics_staleness_threshold,
            tokenizers: flags.tokenizers,
            fallback_endpoints: flags.fallback_endpoints,
            use_subset_hint: !flags.disable_endpoint_subset_filter,
            emit_scores: flags.emit_endpoint_scores,
            max_request_body_bytes: flags.max_request_body_bytes,
            decision_timeout: flags.decision_timeout,
            max_concurrent_streams: flags.max_concurrent_streams,
            receive_message_bytes: flags
                .grpc_max_recv_msg_size
                .unwrap_or(default_receive_bytes),
            send_message_bytes: flags.grpc_max_send_msg_size.unwrap_or(usize::MAX),
            drain_timeout: flags.drain_timeout,
            log_format: flags.log_format,
            log_level: log_level(flags.verbosity),
            ignored_flags: flags.foreign.ignored(),
            endpoints: endpoint_source(flags.endpoints, flags.endpoints_file)?,
        })
    }
}

fn endpoint_source(
    endpoints: Vec<String>,
    file: Option<PathBuf>,
) -> Result<EndpointSource, SettingsError> {
    if let Some(file) = file {
        return Ok(EndpointSource::File(file));
    }
    if endpoints.is_empty() {
        return Err(SettingsError::NoEndpoints);
    }
    Ok(EndpointSource::Static(endpoints))
}

fn check_above_zero(flags: &Flags) -> Result<(), SettingsError> {
    let values = [
        (
            "refresh-metrics-interval",
            flags.refresh_metrics_interval.is_zero(),
        ),
        (
            "metrics-staleness-threshold",
            flags.metrics_staleness_threshold.is_zero(),
        ),
        ("decision-timeout", flags.decision_timeout.is_zero()),
        ("max-request-body-bytes", flags.max_request_body_bytes == 0),
        (
            "grpc-max-recv-msg-size",
            flags.grpc_max_recv_msg_size == Some(0),
        ),
        (
            "grpc-max-send-msg-size",
            flags.grpc_max_send_msg_size == Some(0),
        ),
    ];
    match values.into_iter().find(|(_, is_zero)| *is_zero) {
        Some((flag, _)) => Err(SettingsError::Zero { flag }),
        None => Ok(()),
    }
}

fn check_tokenizers(folders: &[TokenizerFolder]) -> Result<(), SettingsError> {
    for (position, folder) in folders.iter().enumerate() {
        if folders[..position]
            .iter()
            .any(|earlier| earlier.model == folder.model)
        {
            let model = folder
                .model
                .clone()
                .unwrap_or_else(|| "every other model".to_owned());
            return Err(SettingsError::DuplicateTokenizer { model });
        }
    }
    Ok(())
}

fn tls_mode(flags: &Flags) -> Result<TlsMode, SettingsError> {
    match (flags.secure_serving, &flags.cert_path) {
        (true, Some(folder)) => Ok(TlsMode::Certificate(folder.clone())),
        (true, None) => Ok(TlsMode::SelfSigned),
        (false, None) => Ok(TlsMode::ClearText),
        (false, Some(_)) => Err(SettingsError::CertificateInClearText),
    }
}

/// The field's verbosities: 2 is its default, 4 its debug and 5 its trace level.
fn log_level(verbosity: u8) -> LogLevel {
    match verbosity {
        0 => LogLevel::Warn,
        1..=3 => LogLevel::Info,
        4 => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn settings(arguments: &str) -> Result<Settings, SettingsError> {
        let arguments = ["epp"].into_iter().chain(arguments.split_whitespace());
        Settings::try_from(Flags::try_parse_from(arguments).expect("the flags parse"))
    }

    const ONE: &str = "--endpoint 127.0.0.1:8000";

    #[test]
    fn command_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_fields() {
        let settings = settings(ONE).unwrap();
        assert_eq!(settings.ext_proc_address, "0.0.0.0:9002".parse().unwrap());
        assert_eq!(settings.health_address, "0.0.0.0:9003".parse().unwrap());
        assert_eq!(settings.metrics_address, "0.0.0.0:9090".parse().unwrap());
        assert_eq!(settings.tls, TlsMode::SelfSigned);
        assert_eq!(settings.refresh_metrics_interval, Duration::from_millis(50));
        assert_eq!(settings.metrics_staleness_threshold, Duration::from_secs(2));
        assert_eq!(settings.drain_timeout, Duration::from_secs(30));
        assert_eq!(settings.max_request_body_bytes, 64 << 20);
        assert_eq!(settings.receive_message_bytes, 65 << 20);
        assert_eq!(settings.fallback_endpoints, 0);
        assert!(settings.use_subset_hint);
        assert_eq!(settings.log_level, LogLevel::Info);
    }

    #[test]
    fn booleans_are_written_with_and_without_a_value() {
        let of = |flag: &str| settings(&format!("{ONE} {flag}")).unwrap();
        assert_eq!(of("--secure-serving=false").tls, TlsMode::ClearText);
        assert_eq!(of("--secure-serving").tls, TlsMode::SelfSigned);
        assert!(of("--emit-endpoint-scores").emit_scores);
        assert!(!of("--disable-endpoint-subset-filter=true").use_subset_hint);
    }

    #[test]
    fn field_spellings_of_the_log_flags_work() {
        let settings = settings(&format!("{ONE} --v=4 --zap-encoder=json")).unwrap();
        assert_eq!(
            (settings.log_level, settings.log_format),
            (LogLevel::Debug, LogFormat::Json)
        );
    }

    #[test]
    fn tokenizers_are_per_model() {
        let settings = settings(&format!("{ONE} --tokenizer /a --tokenizer m=/b")).unwrap();
        assert_eq!(settings.tokenizers[0].model, None);
        assert_eq!(settings.tokenizers[1].model.as_deref(), Some("m"));
        assert_eq!(settings.tokenizers[1].folder, PathBuf::from("/b"));
    }

    #[test]
    fn nonsense_is_refused_with_its_flag() {
        let cases = [
            (String::new(), "--endpoint"),
            (
                format!("{ONE} --tokenizer /a --tokenizer /b"),
                "--tokenizer",
            ),
            (format!("{ONE} --decision-timeout 0s"), "--decision-timeout"),
            (
                format!("{ONE} --secure-serving=false --cert-path /x"),
                "--cert-path",
            ),
            (format!("{ONE} --pool-name vllm"), "--pool-name"),
            (format!("{ONE} --config-file c.yaml"), "--config-file"),
            (
                format!("{ONE} --ha-enable-leader-election"),
                "--ha-enable-leader-election",
            ),
            (
                format!("{ONE} --metrics-endpoint-auth=true"),
                "--metrics-endpoint-auth",
            ),
        ];
        for (arguments, part) in cases {
            let error = settings(&arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments}: {error}");
        }
    }

    #[test]
    fn foreign_flags_that_ask_for_nothing_here_are_accepted() {
        let flags =
            "--ha-enable-leader-election=false --metrics-endpoint-auth=false --tracing=false";
        assert_eq!(
            settings(&format!("{ONE} {flags}")).unwrap().ignored_flags,
            [""; 0]
        );
        let flags = "--tracing --enable-pprof=true --refresh-prometheus-metrics-interval=5s";
        let ignored = settings(&format!("{ONE} {flags}")).unwrap().ignored_flags;
        assert_eq!(
            ignored,
            [
                "--tracing",
                "--enable-pprof",
                "--refresh-prometheus-metrics-interval"
            ]
        );
    }

    #[test]
    fn endpoints_and_file_exclude_each_other() {
        let arguments = ["epp", "--endpoint", "127.0.0.1:1", "--endpoints-file", "x"];
        assert!(Flags::try_parse_from(arguments).is_err());
    }
}
