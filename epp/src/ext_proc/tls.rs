//! The certificate of the ext_proc port.
//!
//! Gateways speak TLS to a picker by default and most do not verify who answers, so without files a
//! self-signed certificate is made at start-up and lives as long as the process. `--cert-path`
//! names a folder with `tls.crt` and `tls.key`, the layout of a mounted Kubernetes secret.
//! Certificates are read once; a renewed one needs a restart.

use std::path::{Path, PathBuf};

use tonic::transport::{Identity, ServerTlsConfig};

/// Names in the self-signed certificate.
const SELF_SIGNED_NAMES: [&str; 2] = ["localhost", "epp"];

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot make a self-signed certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
}

/// The TLS settings of the ext_proc port, from the folder or self-signed without one.
pub fn server_config(certificate_folder: Option<&Path>) -> Result<ServerTlsConfig, TlsError> {
    let identity = match certificate_folder {
        Some(folder) => Identity::from_pem(
            read(&folder.join("tls.crt"))?,
            read(&folder.join("tls.key"))?,
        ),
        None => self_signed()?,
    };
    Ok(ServerTlsConfig::new().identity(identity))
}

/// Chooses ring as the process's TLS provider. Libraries that ask for the default one panic where
/// none was chosen.
pub fn install_provider() {
    // An error means that one was chosen before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn self_signed() -> Result<Identity, TlsError> {
    let made = rcgen::generate_simple_self_signed(SELF_SIGNED_NAMES.map(str::to_owned))?;
    Ok(Identity::from_pem(
        made.cert.pem(),
        made.signing_key.serialize_pem(),
    ))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_signed_without_a_folder() {
        assert!(server_config(None).is_ok());
    }

    #[test]
    fn missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tls.crt"), "x").unwrap();
        let error = server_config(Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("tls.key"), "{error}");
    }
}
