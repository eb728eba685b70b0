//! Whose certificates are believed: those that the host's authorities and `registry.ca_file` vouch
//! for, and those that stand in `registry.ca_file` themselves.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme, crypto,
};

use crate::error::RegistryError;

/// Prepares TLS; `authorities` are the PEM text of `registry.ca_file`.
///
/// # Errors
/// A text without a certificate in it, and a host that has none either.
pub(crate) fn tls_config(authorities: Option<&str>) -> Result<Arc<ClientConfig>, RegistryError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "the host's certificate authorities");
    }
    roots.add_parsable_certificates(native.certs);
    let mut given = Vec::new();
    if let Some(text) = authorities {
        let bad = |problem: String| {
            RegistryError::Certificates(format!(
                "registry.ca_file holds no certificates: {problem}"
            ))
        };
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate.clone()).map_err(|error| bad(error.to_string()))?;
            given.push(certificate);
        }
        if given.is_empty() {
            return Err(bad("there is no PEM in it".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(RegistryError::Certificates(
            "this host has no certificate authorities to know registries by".to_owned(),
        ));
    }
    let unusable = |error: &dyn std::error::Error| RegistryError::Certificates(error.to_string());
    let provider = Arc::new(crypto::ring::default_provider());
    let chains =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&error))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        // "Dangerous" is what a verifier might leave out; this one leaves out nothing but the
        // search for an authority, and that only for a certificate that the user named.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chains, given }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Believes what webpki does, and a server that shows one of the certificates of `registry.ca_file`
/// as its own. Such a one is often an authority as well (`openssl req -x509` makes it so), which
/// webpki takes from no server, or its issuer is unknown.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = self.chains.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let Err(error) = verified else { return verified };
        let is_given = self.given.iter().any(|given| given.as_ref() == end_entity.as_ref());
        if !is_given || !is_about_the_issuer(&error) {
            return Err(error);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Returns whether webpki has nothing against a certificate but where it comes from. It looks at the
/// dates before either of these (`check_issuer_independent_properties`), as the tests make sure.
fn is_about_the_issuer(error: &TlsError) -> bool {
    match error {
        // A bad signature here is one by an authority that only bears the issuer's name.
        TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => true,
        TlsError::InvalidCertificate(CertificateError::Other(other)) => {
            other.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
        }
        _ => false,
    }
}
