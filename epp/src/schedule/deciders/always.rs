//! `always-disagg-pd-decider` splits every request, `always-disagg-multimodal-decider` each one that
//! brings an image, audio or video.

use super::super::plugin::{Context, Maker};
use super::Decider;
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The type name of the decider for prefill.
pub const PD_TYPE_NAME: &str = "always-disagg-pd-decider";

/// The type name of the decider for encode.
pub const MULTIMODAL_TYPE_NAME: &str = "always-disagg-multimodal-decider";

/// The decider for prefill.
pub const PD_MAKER: Maker<dyn Decider> = Maker {
    plugin: PluginType {
        name: PD_TYPE_NAME,
        kind: PluginKind::Decider,
        stage: Stage::Beta,
        check: plugins::check::<NoParameters>,
    },
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(Box::new(Always))
    },
};

/// The decider for encode.
pub const MULTIMODAL_MAKER: Maker<dyn Decider> = Maker {
    plugin: PluginType {
        name: MULTIMODAL_TYPE_NAME,
        kind: PluginKind::Decider,
        stage: Stage::Beta,
        check: plugins::check::<NoParameters>,
    },
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(Box::new(AlwaysMultimodal))
    },
};

/// Splits every request.
#[derive(Clone, Copy, Debug)]
pub struct Always;

impl Decider for Always {
    fn type_name(&self) -> &'static str {
        PD_TYPE_NAME
    }

    fn splits(&self, _: &Context<'_>, _: Option<usize>) -> bool {
        true
    }
}

/// Splits requests with media.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysMultimodal;

impl Decider for AlwaysMultimodal {
    fn type_name(&self) -> &'static str {
        MULTIMODAL_TYPE_NAME
    }

    fn splits(&self, context: &Context<'_>, _: Option<usize>) -> bool {
        !context.request.media.is_empty()
    }
}
