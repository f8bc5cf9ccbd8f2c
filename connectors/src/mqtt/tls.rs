//! TLS for `mqtts://`: the `ring` provider, per connection, whatever the process has installed.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::options::TlsOptions;

/// Reads the files of `options` and makes a client configuration.
///
/// # Errors
/// What is wrong and with which file, for a person; never the content of a file.
pub(crate) fn client_config(options: &TlsOptions) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("no usable TLS version: {error}"))?
        .with_root_certificates(roots(options.ca.as_deref())?);
    let config = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("key file {}: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| format!("client certificate: {error}"))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let found = match ca {
        Some(path) => certificates(path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let (added, _) = store.add_parsable_certificates(found);
    match (added, ca) {
        (0, Some(path)) => Err(format!("{} holds no usable certificate", path.display())),
        (0, None) => Err("the system has no trusted certificates; name a file in `tls: {ca: ...}`".into()),
        _ => Ok(store),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| format!("certificate file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let empty = dir.path().join("ca.pem");
        std::fs::write(&empty, "no certificate").expect("written");
        let error = client_config(&TlsOptions { ca: Some(empty), ..Default::default() }).expect_err("no certificate in it");
        assert!(error.contains("ca.pem"), "{error}");
        let missing = dir.path().join("none.pem");
        let error = client_config(&TlsOptions { ca: Some(missing), ..Default::default() }).expect_err("no such file");
        assert!(error.contains("none.pem"), "{error}");
    }
}
