//! Registries behind TLS, with an authority that the host does not know by itself.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use banger_registry::{Access, Proxies, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::server::{Server, answer};
use crate::support::{Cache, pull_all, reference, settings};

const OPENSSL: &str = "/usr/bin/openssl";

/// A certificate and its key, PEM.
struct Identity {
    certificate: String,
    key: String,
}

/// Runs openssl in a folder.
fn openssl(folder: &Path, words: &[&str]) {
    let output = Command::new(OPENSSL).args(words).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What `openssl req -x509` makes for `name` in one line, which is an authority as well.
fn self_signed(name: &str) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let names = format!("subjectAltName=DNS:{name}");
    let subject = format!("/CN={name}");
    let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let about = ["-nodes", "-days", "2", "-subj", &subject, "-addext", &names];
    let to = ["-keyout", "key", "-out", "certificate"];
    openssl(folder.path(), &[&words[..], &about, &to].concat());
    identity(folder.path())
}

/// The same for `registry.test`, whose days were in 2020.
fn expired() -> Identity {
    const CONFIG: &str = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\n\
        new_certs_dir=.\ndefault_md=sha256\npolicy=p\nx509_extensions=e\n[p]\n\
        commonName=supplied\n[e]\nsubjectAltName=DNS:registry.test\n\
        basicConstraints=critical,CA:TRUE\n";
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("config", CONFIG), ("index", ""), ("serial", "01\n")] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let words = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let about = ["-nodes", "-subj", "/CN=test", "-keyout", "key", "-out", "request"];
    openssl(folder.path(), &[&words[..], &about].concat());
    let words = ["ca", "-batch", "-selfsign", "-config", "config", "-in", "request"];
    let about = ["-keyfile", "key", "-notext", "-out", "certificate"];
    let days = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"];
    openssl(folder.path(), &[&words[..], &about, &days].concat());
    identity(folder.path())
}

/// A certificate for `registry.test` that nobody's authority has signed; it is none itself.
fn issued() -> Identity {
    let authority = self_signed("authority.test");
    let folder = tempfile::tempdir().unwrap();
    let about = "subjectAltName=DNS:registry.test\nbasicConstraints=CA:FALSE\n";
    for (name, content) in
        [("by", authority.certificate.as_str()), ("by-key", &authority.key), ("about", about)]
    {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let words = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let to = ["-nodes", "-subj", "/CN=issued", "-keyout", "key", "-out", "request"];
    openssl(folder.path(), &[&words[..], &to].concat());
    let words = ["x509", "-req", "-in", "request", "-CA", "by", "-CAkey", "by-key"];
    let to = ["-set_serial", "7", "-days", "2", "-extfile", "about", "-out", "certificate"];
    openssl(folder.path(), &[&words[..], &to].concat());
    identity(folder.path())
}

fn identity(folder: &Path) -> Identity {
    let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
    Identity { certificate: read("certificate"), key: read("key") }
}

/// Puts TLS before a server; returns the port. With `tunnel` it is a proxy, whose every tunnel ends
/// there.
async fn encrypt(server: &Server, certificate: &str, key: &str, tunnel: bool) -> u16 {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = crypto::ring::sign::any_supported_type(&key).unwrap();
    // Not `with_single_cert`, which refuses the key of another certificate.
    let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = server.authority.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                if tunnel {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    stream.write_all(b"HTTP/1.1 200 X\r\n\r\n").await.unwrap();
                }
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
    let Identity { certificate, key } = self_signed("localhost");
    let port = encrypt(&server, &certificate, &key, false).await;
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
    let Identity { certificate, key } = self_signed("localhost");
    let port = encrypt(&server, &certificate, &key, false).await;
    let name = reference("127.0.0.1:1", "x");
    let access = Access { authorities: Some(certificate), ..Access::default() };
    let pulled = pull_all(through(port, "127.0.0.1:1"), access, &Cache::new(), &name).await;
    assert!(pulled.is_err());
    assert_eq!((server.requests().len(), plain.requests().len()), (1, 0));
}

/// Pulls an image of `registry.test` from who shows this certificate, with another as
/// `registry.ca_file`.
async fn pulled(
    server: &Server,
    certificate: &str,
    key: &str,
    given: &str,
) -> Result<Vec<Vec<u8>>, String> {
    let port = encrypt(server, certificate, key, true).await;
    let proxies = Proxies::new(Some(&format!("http://127.0.0.1:{port}")), None, None).unwrap();
    let access = Access { authorities: Some(given.to_owned()), proxies, ..Access::default() };
    pull_all(settings(), access, &Cache::new(), &reference("registry.test", "x")).await
}

/// The commonest private registry: a certificate that nobody else vouches for, given as
/// `registry.ca_file`. Its name, its days and its key still count.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_was_given_is_believed_for_its_name_its_days_and_its_key() {
    let contents = super::hostile::contents(&[b"layer"]);
    let server =
        Server::start(move |request, stream| super::hostile::serve(&contents, request, stream));
    let right = self_signed("registry.test");
    let other = self_signed("registry.test");
    let elsewhere = self_signed("elsewhere.test");
    let old = expired();
    let both = format!("{}{}", other.certificate, right.certificate);
    let issued = issued();
    let namesake = self_signed("authority.test");
    let confused = format!("{}{}", namesake.certificate, issued.certificate);
    for (shown, given) in [
        (&right, &right.certificate),
        (&right, &both),
        (&issued, &issued.certificate),
        (&issued, &confused),
    ] {
        let read = pulled(&server, &shown.certificate, &shown.key, given).await.unwrap();
        assert_eq!(read, [b"layer".to_vec()]);
    }
    let seen = server.requests().len();
    assert_eq!(seen, 12);
    for (shown, key, given, part) in [
        (&elsewhere, &elsewhere.key, &elsewhere, "not valid for name"),
        (&old, &old.key, &old, "expired"),
        (&right, &right.key, &other, "CaUsedAsEndEntity"),
        (&right, &other.key, &right, "BadSignature"),
        (&issued, &issued.key, &right, "UnknownIssuer"),
        (&issued, &issued.key, &namesake, "BadSignature"),
    ] {
        let refused = pulled(&server, &shown.certificate, key, &given.certificate).await;
        let error = refused.expect_err(part);
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    assert_eq!(server.requests().len(), seen, "nothing is asked of who is not known");
}
