//! `predicted-latency-producer`: the field's plugin type behind predictions.
//!
//! In the field it trains and asks a sidecar; here it configures [`LatencyModel`]. Parameters that only
//! tune the sidecar are accepted, and [`without_effect`](Parameters::without_effect) names those that
//! were given, for a warning.

use serde::{Deserialize, Serialize};

use super::model::LatencyOptions;
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::config::values;

/// The plugin's type name.
pub const TYPE_NAME: &str = "predicted-latency-producer";

/// The plugin type.
pub const PLUGIN_TYPE: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::DataProducer,
    stage: Stage::Beta,
    check: plugins::check::<Parameters>,
};

/// The field's parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Without effect: how seldom the field's producer samples output tokens. Every answer counts
    /// here, once.
    pub sampling_mean: f64,
    /// Without effect, likewise.
    pub max_decode_token_samples_for_prediction: i64,
    /// The target for the time per output token is multiplied by it.
    pub slo_buffer_factor: f64,
    /// Without effect: nothing is kept of a request but what its stream holds.
    #[serde(rename = "contextTTL")]
    pub context_ttl: String,
    /// Whether answers are streamed, so that the time per output token can be seen.
    pub streaming_mode: bool,
    /// The label whose value `prefill` marks endpoints that generate no tokens.
    pub endpoint_role_label: String,
    /// Whether to predict, or only to learn.
    pub predict_in_produce: bool,
    /// Without effect: encoder caches are no part of the model.
    pub use_encoder_cache_features: bool,
    /// There is one index, so any name is accepted and means it.
    pub prefix_match_info_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            sampling_mean: 1_000.0,
            max_decode_token_samples_for_prediction: 0,
            slo_buffer_factor: 1.0,
            context_ttl: "5m".to_owned(),
            streaming_mode: false,
            endpoint_role_label: String::new(),
            predict_in_produce: true,
            use_encoder_cache_features: false,
            prefix_match_info_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let above_zero = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            let reason = format!("must be more than 0, not {value}");
            Err(ParameterError::new(field, reason))
        };
        above_zero("samplingMean", self.sampling_mean)?;
        above_zero("sloBufferFactor", self.slo_buffer_factor)?;
        if self.max_decode_token_samples_for_prediction < 0 {
            let field = "maxDecodeTokenSamplesForPrediction";
            return Err(ParameterError::new(field, "must not be below 0"));
        }
        values::duration(&self.context_ttl)
            .map(|_| ())
            .map_err(|reason| ParameterError::new("contextTTL", reason))
    }
}

impl Parameters {
    /// What these ask of the model.
    pub fn options(&self) -> LatencyOptions {
        LatencyOptions {
            slo_buffer_factor: self.slo_buffer_factor,
            streaming: self.streaming_mode,
            role_label: self.endpoint_role_label.clone(),
            predict: self.predict_in_produce,
        }
    }

    /// Parameters that differ from their defaults and tune what is not here.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let defaults = Self::default();
        let samples = self.max_decode_token_samples_for_prediction
            != defaults.max_decode_token_samples_for_prediction;
        let sampling = (self.sampling_mean - defaults.sampling_mean).abs() > f64::EPSILON;
        let given = [
            ("samplingMean", sampling),
            ("maxDecodeTokenSamplesForPrediction", samples),
            ("contextTTL", self.context_ttl != defaults.context_ttl),
            ("useEncoderCacheFeatures", self.use_encoder_cache_features),
        ];
        let is_given = |(name, given): &(&'static str, bool)| given.then_some(*name);
        given.iter().filter_map(is_given).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn defaults_are_the_fields() {
        assert_eq!(
            (PLUGIN_TYPE.check)(&Value::Null).unwrap(),
            json!({
                "samplingMean": 1000.0, "maxDecodeTokenSamplesForPrediction": 0,
                "sloBufferFactor": 1.0, "contextTTL": "5m", "streamingMode": false,
                "endpointRoleLabel": "", "predictInProduce": true,
                "useEncoderCacheFeatures": false, "prefixMatchInfoProducerName": "",
            })
        );
        assert!(Parameters::default().without_effect().is_empty());
    }

    #[test]
    fn what_is_wrong_or_without_effect_is_named() {
        let wrong = |value| (PLUGIN_TYPE.check)(&value).unwrap_err().path;
        assert_eq!(wrong(json!({"samplingMean": 0})), "samplingMean");
        assert_eq!(wrong(json!({"sloBufferFactor": -1})), "sloBufferFactor");
        assert_eq!(wrong(json!({"contextTTL": "long"})), "contextTTL");
        let samples = json!({"maxDecodeTokenSamplesForPrediction": -1});
        assert_eq!(wrong(samples), "maxDecodeTokenSamplesForPrediction");
        let given: Parameters =
            plugins::read(&json!({"contextTTL": "1m", "samplingMean": 50})).unwrap();
        assert_eq!(given.without_effect(), ["samplingMean", "contextTTL"]);
    }
}
