//! Endpoints from the command line: `ADDRESS[,name=NAME][,kv-events=tcp://…][,kv-replay=tcp://…]`,
//! once per endpoint.
//!
//! `ADDRESS` is a literal `ip:port`, IPv6 in brackets. Host names are not resolved: an endpoint's
//! address is what the proxy is told to dial, so it has to be one.

use std::net::SocketAddr;

use super::super::endpoint::EndpointSpec;

/// Why the text of one endpoint was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StaticEndpointError {
    #[error("{0:?} is not an address of the form ip:port or [ipv6]:port")]
    Address(String),
    #[error("{0:?} is not of the form key=value")]
    NotAPair(String),
    #[error("unknown key {0:?}; known are name, kv-events, kv-replay")]
    UnknownKey(String),
    #[error("key {0} is given twice")]
    Twice(String),
    #[error("key {0} has no value")]
    Empty(String),
    #[error("{key} must begin with tcp://, not {value:?}")]
    NotTcp { key: String, value: String },
}

/// Reads the text of one endpoint. Without a name, the address is the name.
pub fn parse_endpoint(text: &str) -> Result<EndpointSpec, StaticEndpointError> {
    let mut parts = text.split(',').map(str::trim);
    let address = parts.next().unwrap_or_default();
    let address: SocketAddr = address
        .parse()
        .map_err(|_| StaticEndpointError::Address(address.to_owned()))?;
    let mut name = None;
    let mut spec = EndpointSpec::new(address.to_string(), address);
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| StaticEndpointError::NotAPair(part.to_owned()))?;
        let field = match key {
            "name" => &mut name,
            "kv-events" => &mut spec.kv_events,
            "kv-replay" => &mut spec.kv_replay,
            _ => return Err(StaticEndpointError::UnknownKey(key.to_owned())),
        };
        if value.is_empty() {
            return Err(StaticEndpointError::Empty(key.to_owned()));
        }
        if key != "name" && !value.starts_with("tcp://") {
            return Err(StaticEndpointError::NotTcp {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        if field.replace(value.to_owned()).is_some() {
            return Err(StaticEndpointError::Twice(key.to_owned()));
        }
    }
    spec.name = name.unwrap_or(spec.name);
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_is_enough() {
        let spec = parse_endpoint("10.0.0.1:8000").unwrap();
        assert_eq!(spec.name, "10.0.0.1:8000");
        assert_eq!(spec.kv_events, None);
        let spec = parse_endpoint("[fd00::1]:8000,name=six").unwrap();
        assert_eq!(spec.name, "six");
        assert!(spec.address.is_ipv6());
    }

    #[test]
    fn event_addresses_are_taken() {
        let text = "127.0.0.1:8001,kv-events=tcp://127.0.0.1:5557,kv-replay=tcp://127.0.0.1:5558";
        let spec = parse_endpoint(text).unwrap();
        assert_eq!(spec.kv_events.as_deref(), Some("tcp://127.0.0.1:5557"));
        assert_eq!(spec.kv_replay.as_deref(), Some("tcp://127.0.0.1:5558"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| parse_endpoint(text).unwrap_err().to_string();
        assert!(message("worker:8000").contains("\"worker:8000\""));
        assert!(message("").contains("ip:port"));
        assert!(message("10.0.0.1:8000,name").contains("key=value"));
        assert!(message("10.0.0.1:8000,nmae=a").contains("\"nmae\""));
        assert!(message("10.0.0.1:8000,name=").contains("no value"));
        assert!(message("10.0.0.1:8000,name=a,name=b").contains("twice"));
        assert!(message("10.0.0.1:8000,kv-events=ipc:///x").contains("tcp://"));
    }
}
