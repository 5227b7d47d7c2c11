//! The kinds of traffic by name, and a kind with its parameters.

use serde::de::DeserializeOwned;

use super::draw::Draw;
use super::kinds::{Agents, LongDocuments, MultiTurn, Rag, SharedPrompts, SkewedTenants, Unique};
use super::{GenerateError, Session};

/// The kinds by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Few long system prompts, each question of its own.
    SharedPrompts,
    /// Chats: each turn contains all before it.
    MultiTurn,
    /// Agents: long instructions, many turns, short pauses, growing contexts.
    Agents,
    /// Instructions, a few passages out of many, a question.
    Rag,
    /// Documents of 10,000 to 50,000 tokens, each asked a few times.
    LongDocuments,
    /// Tenants of very different sizes, each with its own system prompts.
    SkewedTenants,
    /// Nothing shared.
    Unique,
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Self::SharedPrompts,
        Self::MultiTurn,
        Self::Agents,
        Self::Rag,
        Self::LongDocuments,
        Self::SkewedTenants,
        Self::Unique,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SharedPrompts => "shared-prompts",
            Self::MultiTurn => "multi-turn",
            Self::Agents => "agents",
            Self::Rag => "rag",
            Self::LongDocuments => "long-documents",
            Self::SkewedTenants => "skewed-tenants",
            Self::Unique => "unique",
        }
    }

    /// The kind with its defaults, but for what the JSON object `parameters` names: the fields of the kind's struct.
    pub fn shape(self, parameters: Option<&str>) -> Result<Shape, GenerateError> {
        let text = parameters.unwrap_or("{}");
        Ok(match self {
            Self::SharedPrompts => Shape::SharedPrompts(self.read(text)?),
            Self::MultiTurn => Shape::MultiTurn(self.read(text)?),
            Self::Agents => Shape::Agents(self.read(text)?),
            Self::Rag => Shape::Rag(self.read(text)?),
            Self::LongDocuments => Shape::LongDocuments(self.read(text)?),
            Self::SkewedTenants => Shape::SkewedTenants(self.read(text)?),
            Self::Unique => Shape::Unique(self.read(text)?),
        })
    }

    fn read<T: DeserializeOwned>(self, text: &str) -> Result<T, GenerateError> {
        serde_json::from_str(text).map_err(|error| GenerateError::Parameters {
            kind: self.name(),
            problem: error.to_string(),
        })
    }
}

/// A kind with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    SharedPrompts(SharedPrompts),
    MultiTurn(MultiTurn),
    Agents(Agents),
    Rag(Rag),
    LongDocuments(LongDocuments),
    SkewedTenants(SkewedTenants),
    Unique(Unique),
}

impl Shape {
    pub fn kind(&self) -> Kind {
        match self {
            Self::SharedPrompts(_) => Kind::SharedPrompts,
            Self::MultiTurn(_) => Kind::MultiTurn,
            Self::Agents(_) => Kind::Agents,
            Self::Rag(_) => Kind::Rag,
            Self::LongDocuments(_) => Kind::LongDocuments,
            Self::SkewedTenants(_) => Kind::SkewedTenants,
            Self::Unique(_) => Kind::Unique,
        }
    }

    pub(super) fn session(&self, draw: &mut Draw) -> Session {
        match self {
            Self::SharedPrompts(shape) => shape.session(draw),
            Self::MultiTurn(shape) => shape.session(draw),
            Self::Agents(shape) => shape.session(draw),
            Self::Rag(shape) => shape.session(draw),
            Self::LongDocuments(shape) => shape.session(draw),
            Self::SkewedTenants(shape) => shape.session(draw),
            Self::Unique(shape) => shape.session(draw),
        }
    }
}
