//! The checked settings: everything the parts need, typed and complete.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use super::flags::Flags;
use super::model_server_flags::ModelServerFlags;
use super::pools::{self, DEFAULT_POOL, PoolSettings};
use super::problems::ConfigErrors;
use super::source::ConfigSource;
use super::tls::{TlsMode, TlsOptions};

/// What this process was asked to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At least one; names are unique, and one at most is the default one.
    pub pools: Vec<PoolSettings>,
    /// Take plugin types that are alpha.
    pub allow_experimental_plugins: bool,
    /// How workers are scraped, where deprecated flags say so.
    pub model_server: ModelServerFlags,
    pub refresh_metrics_interval: Duration,
    pub metrics_staleness_threshold: Duration,
    /// Endpoints named after the picked one.
    pub fallback_endpoints: usize,
    pub use_subset_hint: bool,
    pub emit_scores: bool,
    pub response_watch: ResponseWatch,
    /// How long a request counts as running without a word from the access log.
    pub access_log_lease: Duration,
    /// The request header, in lower case, that asks for the decision; `None` = nobody may ask.
    pub debug_header: Option<String>,
    /// Decisions kept for the status page.
    pub decision_log_size: usize,
    pub ext_proc_address: SocketAddr,
    pub health_address: SocketAddr,
    pub metrics_address: SocketAddr,
    pub tls: TlsMode,
    pub tls_options: TlsOptions,
    pub max_request_body_bytes: usize,
    pub decision_timeout: Duration,
    pub max_concurrent_streams: u32,
    pub receive_message_bytes: usize,
    pub send_message_bytes: usize,
    pub drain_timeout: Duration,
    pub log_format: LogFormat,
    pub log_level: LogLevel,
    /// Whether spans may be exported; whether they are depends on the environment.
    pub tracing: bool,
    pub grpc_stream_metrics: bool,
    /// Flags that were given and do nothing.
    pub ignored_flags: Vec<&'static str>,
    /// Flags that were given and work, and what to write instead.
    pub deprecated_flags: Vec<(&'static str, &'static str)>,
}

/// Where the endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSource {
    /// One text for each, for discovery to read.
    Static(Vec<String>),
    File(PathBuf),
    /// The configuration's `dataLayer.discovery` names a file.
    Configuration,
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

/// How responses are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResponseWatch {
    /// By access log where the gateway shows no response bodies, as a stream otherwise.
    Auto,
    Stream,
    AccessLog,
}

/// The policies that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    FieldDefault,
    ExpectedTtft,
}

impl From<PolicyName> for ConfigSource {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::FieldDefault => Self::FieldDefault,
            PolicyName::ExpectedTtft => Self::ExpectedTtft,
        }
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
    #[error("--debug-header: `{name}` is no header name")]
    DebugHeader { name: String },
    #[error("--pools-file is wrong:\n{0}")]
    Pools(#[from] ConfigErrors),
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
        let tls = tls_mode(&flags)?;
        let debug_header = flags.debug_header.as_deref().map(header_name).transpose()?;
        let address = |port| SocketAddr::new(flags.bind_address, port);
        let default_receive_bytes = flags
            .max_request_body_bytes
            .saturating_add(MESSAGE_OVERHEAD_BYTES);
        Ok(Self {
            ext_proc_address: address(flags.grpc_port),
            health_address: address(flags.grpc_health_port),
            metrics_address: address(flags.metrics_port),
            tls,
            tls_options: TlsOptions {
                min_version: flags.tls_min_version,
                cipher_suites: flags.tls_cipher_suites.clone(),
                reload: flags.enable_cert_reload,
            },
            refresh_metrics_interval: flags.refresh_metrics_interval,
            metrics_staleness_threshold: flags.metrics_staleness_threshold,
            allow_experimental_plugins: flags.allow_experimental_plugins,
            deprecated_flags: flags.model_server.given(),
            model_server: flags.model_server.clone(),
            response_watch: flags.response_watch,
            access_log_lease: flags.access_log_lease,
            debug_header,
            decision_log_size: flags.decision_log_size as usize,
            tracing: flags.tracing,
            grpc_stream_metrics: flags.enable_grpc_stream_metrics,
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
            pools: pools(flags)?,
        })
    }
}

/// The pools of the pools file, or the one that the plain flags describe.
fn pools(flags: Flags) -> Result<Vec<PoolSettings>, SettingsError> {
    if let Some(file) = &flags.pools_file {
        return Ok(pools::load(file)?);
    }
    check_tokenizers(&flags.tokenizers)?;
    let config = match (flags.config_file, flags.config_text) {
        (Some(file), _) => ConfigSource::File(file),
        (None, Some(text)) => ConfigSource::Text(text),
        (None, None) => flags.policy.into(),
    };
    Ok(vec![PoolSettings {
        name: DEFAULT_POOL.to_owned(),
        is_default: true,
        authorities: Vec::new(),
        endpoints: endpoint_source(flags.endpoints, flags.endpoints_file, &config)?,
        config,
        resources_file: flags.resources_file,
        tokenizers: flags.tokenizers,
    }])
}

fn header_name(name: &str) -> Result<String, SettingsError> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(is_token) {
        return Err(SettingsError::DebugHeader {
            name: name.to_owned(),
        });
    }
    Ok(name.to_ascii_lowercase())
}

/// A configuration may name the endpoints; whether it does is seen when it is read.
fn endpoint_source(
    endpoints: Vec<String>,
    file: Option<PathBuf>,
    config: &ConfigSource,
) -> Result<EndpointSource, SettingsError> {
    if let Some(file) = file {
        return Ok(EndpointSource::File(file));
    }
    if endpoints.is_empty() {
        return match config {
            ConfigSource::FieldDefault | ConfigSource::ExpectedTtft => {
                Err(SettingsError::NoEndpoints)
            }
            ConfigSource::File(_) | ConfigSource::Text(_) => Ok(EndpointSource::Configuration),
        };
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
        ("access-log-lease", flags.access_log_lease.is_zero()),
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
    use crate::config::tls::TlsVersion;

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
        assert!(settings.tracing && !settings.grpc_stream_metrics);
        assert!(!settings.allow_experimental_plugins);
        assert_eq!(settings.response_watch, ResponseWatch::Auto);
        assert_eq!(settings.access_log_lease, Duration::from_mins(1));
        assert_eq!(
            (settings.debug_header, settings.decision_log_size),
            (None, 256)
        );
        assert_eq!(settings.tls_options, TlsOptions::default());
        let [pool] = settings.pools.as_slice() else {
            panic!("{:?}", settings.pools)
        };
        assert_eq!((pool.name.as_str(), pool.is_default), ("default", true));
        assert_eq!(pool.config, ConfigSource::FieldDefault);
    }

    #[test]
    fn configuration_is_a_file_or_a_text() {
        let config = |flags: &str| {
            settings(&format!("{ONE} {flags}")).unwrap().pools[0]
                .config
                .clone()
        };
        assert_eq!(
            config("--config-file c.yaml"),
            ConfigSource::File("c.yaml".into())
        );
        assert_eq!(config("--config-text {}"), ConfigSource::Text("{}".into()));
        let both = ["epp", "--config-file", "c", "--config-text", "x"];
        assert!(Flags::try_parse_from(both).is_err());
    }

    #[test]
    fn tls_flags_are_the_fields() {
        let flags = "--tls-min-version=VersionTLS13 --enable-cert-reload --cert-path /c \
            --tls-cipher-suites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let settings = settings(&format!("{ONE} {flags}")).unwrap();
        assert_eq!(settings.tls, TlsMode::Certificate("/c".into()));
        let options = settings.tls_options;
        assert_eq!(options.min_version, TlsVersion::Tls13);
        assert!(options.reload && options.cipher_suites.len() == 2);
        for wrong in ["--tls-min-version=VersionTLS10", "--tls-cipher-suites=RC4"] {
            assert!(Flags::try_parse_from(["epp", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn older_flags_for_scraping_work_and_are_reported() {
        let flags = "--total-queued-requests-metric=q --model-server-metrics-port=9400 \
            --model-server-metrics-https-insecure-skip-verify=false";
        let settings = settings(&format!("{ONE} {flags}")).unwrap();
        assert_eq!(
            settings
                .model_server
                .total_queued_requests_metric
                .as_deref(),
            Some("q")
        );
        assert_eq!(settings.model_server.model_server_metrics_port, Some(9400));
        let deprecated: Vec<&str> = settings
            .deprecated_flags
            .iter()
            .map(|(flag, _)| *flag)
            .collect();
        assert_eq!(
            deprecated,
            [
                "--total-queued-requests-metric",
                "--model-server-metrics-port",
                "--model-server-metrics-https-insecure-skip-verify"
            ]
        );
    }

    #[test]
    fn pools_come_from_their_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(
            path,
            "pools: [{name: a, endpoints: [x]}, {name: b, endpoints: [y]}]",
        )
        .unwrap();
        let pools = settings(&format!("--pools-file {path}")).unwrap().pools;
        assert_eq!(pools.len(), 2);
        std::fs::write(path, "pools: [{name: a}]").unwrap();
        let error = settings(&format!("--pools-file {path}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(":1:9: pools[0]: no workers"), "{error}");
        for other in [
            "--endpoint=x",
            "--endpoints-file=x",
            "--config-file=x",
            "--tokenizer=x",
        ] {
            assert!(
                Flags::try_parse_from(["epp", "--pools-file=p", other]).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn commands_stand_alone() {
        let flags = Flags::try_parse_from(["epp", "config", "check", "c.yaml"]).unwrap();
        assert!(flags.command.is_some());
        let mixed = ["epp", "--endpoint=127.0.0.1:1", "config", "check", "c.yaml"];
        assert!(Flags::try_parse_from(mixed).is_err());
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
        let tokenizers = &settings.pools[0].tokenizers;
        assert_eq!(tokenizers[0].model, None);
        assert_eq!(tokenizers[1].model.as_deref(), Some("m"));
        assert_eq!(tokenizers[1].folder, PathBuf::from("/b"));
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
            (format!("{ONE} --access-log-lease 0s"), "--access-log-lease"),
            (format!("{ONE} --debug-header a:b"), "--debug-header"),
            (format!("{ONE} --metrics-cert-dir /x"), "--metrics-cert-dir"),
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
        let flags = "--enable-pprof=true --refresh-prometheus-metrics-interval=5s";
        let ignored = settings(&format!("{ONE} {flags}")).unwrap().ignored_flags;
        assert_eq!(
            ignored,
            ["--enable-pprof", "--refresh-prometheus-metrics-interval"]
        );
    }

    #[test]
    fn endpoints_and_file_exclude_each_other() {
        let arguments = ["epp", "--endpoint", "127.0.0.1:1", "--endpoints-file", "x"];
        assert!(Flags::try_parse_from(arguments).is_err());
    }
}
