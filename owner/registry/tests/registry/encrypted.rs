//! Registries behind TLS, with an authority that the host does not know by itself.

use std::process::Command;
use std::sync::Arc;

use banger_registry::{Access, Settings};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::server::{Server, answer};
use crate::support::{Cache, pull_all, reference, settings};

const OPENSSL: &str = "/usr/bin/openssl";
const CONFIG: &str = "[req]\ndistinguished_name=dn\nprompt=no\nx509_extensions=e\n[dn]\nCN=test\n\
    [e]\nsubjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";

/// A certificate for `localhost` and its key, PEM.
fn certificate() -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("config"), CONFIG).unwrap();
    let output = Command::new(OPENSSL)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-config"])
        .arg(path("config"))
        .arg("-keyout")
        .arg(path("key"))
        .arg("-out")
        .arg(path("certificate"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name| std::fs::read_to_string(path(name)).unwrap();
    (read("certificate"), read("key"))
}

/// Puts TLS before a server; returns the port.
async fn encrypt(server: &Server, certificate: &str, key: &str) -> u16 {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = server.authority.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                // A client that does not trust us hangs up.
                let Ok(mut outside) = acceptor.accept(stream).await else { return };
                let mut inside = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    port
}

/// This host's plain registries have TLS under a mirror's address.
fn through(port: u16, authority: &str) -> Settings {
    let mirror = format!("{authority}=https://localhost:{port}");
    Settings { mirrors: vec![mirror.parse().unwrap()], ..settings() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_known_only_where_it_is_given() {
    let layers: [&[u8]; 1] = [b"layer"];
    let contents = super::hostile::contents(&layers);
    let server =
        Server::start(move |request, stream| super::hostile::serve(&contents, request, stream));
    let (certificate, key) = certificate();
    let port = encrypt(&server, &certificate, &key).await;
    // Nobody listens there: what the mirror does not give is not had.
    let closed = "127.0.0.1:1";
    let name = reference(closed, "x");
    let access = Access { authorities: Some(certificate), ..Access::default() };
    pull_all(through(port, closed), access, &Cache::new(), &name).await.unwrap();
    let seen = server.requests().len();
    assert_eq!(seen, 3);
    let strangers = pull_all(through(port, closed), Access::default(), &Cache::new(), &name).await;
    assert!(strangers.is_err());
    assert_eq!(server.requests().len(), seen, "nothing is asked of who is not known");
    let access = Access { authorities: Some("nonsense".to_owned()), ..Access::default() };
    let error = pull_all(through(port, closed), access, &Cache::new(), &name).await.unwrap_err();
    assert!(error.contains("reach"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_leaves_encryption() {
    let plain = Server::start(|_, stream| answer(stream, 200, &[], b"{}"));
    let location = format!("http://{}/x", plain.authority);
    let server = Server::start(move |_, stream| {
        answer(stream, 302, &[("Location", &location)], b"");
    });
    let (certificate, key) = certificate();
    let port = encrypt(&server, &certificate, &key).await;
    let name = reference("127.0.0.1:1", "x");
    let access = Access { authorities: Some(certificate), ..Access::default() };
    let pulled = pull_all(through(port, "127.0.0.1:1"), access, &Cache::new(), &name).await;
    assert!(pulled.is_err());
    assert_eq!((server.requests().len(), plain.requests().len()), (1, 0));
}
