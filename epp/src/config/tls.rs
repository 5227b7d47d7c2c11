//! TLS of the ext_proc port as the field's flags name it: versions and cipher suites as Go writes
//! them.

use std::path::PathBuf;
use std::str::FromStr;

/// How the ext_proc port is secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    ClearText,
    SelfSigned,
    /// A folder with `tls.crt` and `tls.key`.
    Certificate(PathBuf),
}

/// What a secured port speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    pub min_version: TlsVersion,
    /// Of TLS 1.2; empty = all. TLS 1.3 always offers all three of its own, as in Go.
    pub cipher_suites: Vec<CipherSuite>,
    /// Follow the files of a certificate folder.
    pub reload: bool,
}

/// The oldest version that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    #[default]
    Tls12,
    Tls13,
}

impl FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "VersionTLS12" => Ok(Self::Tls12),
            "VersionTLS13" => Ok(Self::Tls13),
            "VersionTLS10" | "VersionTLS11" => Err(format!(
                "{text} is not spoken; the oldest version is VersionTLS12"
            )),
            _ => Err(format!(
                "`{text}` is no version: write VersionTLS12 or VersionTLS13"
            )),
        }
    }
}

/// A cipher suite, by Go's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSuite {
    pub name: &'static str,
    /// The number that the protocol gives it.
    pub id: u16,
}

/// The suites that can be spoken. The others of Go's list are without forward secrecy or
/// authenticated encryption.
const CIPHER_SUITES: [CipherSuite; 9] = [
    suite("TLS_AES_128_GCM_SHA256", 0x1301),
    suite("TLS_AES_256_GCM_SHA384", 0x1302),
    suite("TLS_CHACHA20_POLY1305_SHA256", 0x1303),
    suite("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", 0xc02b),
    suite("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", 0xc02c),
    suite("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", 0xc02f),
    suite("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", 0xc030),
    suite("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", 0xcca8),
    suite("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", 0xcca9),
];

const fn suite(name: &'static str, id: u16) -> CipherSuite {
    CipherSuite { name, id }
}

impl FromStr for CipherSuite {
    type Err = String;

    /// Go also knows the two ChaCha20 suites by names without their hash.
    fn from_str(text: &str) -> Result<Self, String> {
        CIPHER_SUITES
            .into_iter()
            .find(|suite| suite.name == text || suite.name == format!("{text}_SHA256"))
            .ok_or_else(|| {
                let known = CIPHER_SUITES.map(|suite| suite.name).join(", ");
                format!("`{text}` is not spoken; there are {known}")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_gos() {
        assert_eq!("VersionTLS13".parse(), Ok(TlsVersion::Tls13));
        assert!(
            "VersionTLS11"
                .parse::<TlsVersion>()
                .unwrap_err()
                .contains("oldest")
        );
        assert!("1.3".parse::<TlsVersion>().is_err());
        let id = |name: &str| name.parse::<CipherSuite>().map(|suite| suite.id);
        assert_eq!(id("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"), Ok(0xc02f));
        assert_eq!(id("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"), Ok(0xcca8));
        assert!(id("TLS_RSA_WITH_AES_128_CBC_SHA").is_err());
    }
}
