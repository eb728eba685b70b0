//! Requests: credentials, redirects, repetitions and deadlines.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_types::{OciReference, RegistryHost};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::header::{PROXY_AUTHORIZATION, RANGE, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::auth::{Authorization, basic, bearer, form};
use crate::connect::{Connector, unreachable};
use crate::credentials::Credentials;
use crate::error::{RegistryError, printable};
use crate::headers::{Challenge, challenge, redirected, retry_after};
use crate::settings::{Access, Deadlines, Place, Settings};

/// The most redirects of one request; real registries need one or two.
const MOST_REDIRECTS: usize = 5;
/// The longest answer of a token server.
const LONGEST_TOKEN: usize = 1 << 20;
/// How much of an error's body is looked at.
const LONGEST_ERROR: usize = 64 << 10;
const AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));

/// One request's way to the registries: its settings, credentials and connections.
#[derive(Clone, Debug)]
pub struct Registry(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    access: Access,
    connector: Connector,
    client: Client<Connector, Full<Bytes>>,
    /// By place and repository.
    authorizations: Mutex<HashMap<(String, String), Authorization>>,
    /// The addresses of mirrors that are asked no more.
    passed_over: Mutex<HashSet<String>>,
    /// Whether anybody has answered anything.
    has_answered: AtomicBool,
}

/// What is asked of a repository.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    /// Below the repository: `manifests/latest`, `blobs/sha256:...`.
    pub(crate) path: &'a str,
    pub(crate) accept: &'static str,
    /// Where to begin, in bytes.
    pub(crate) from: u64,
    /// For people.
    pub(crate) what: &'a str,
}

/// A repository at the places that may have it.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    registry: Registry,
    places: Arc<Vec<Place>>,
    name: Arc<str>,
    /// The place that answered last.
    preferred: Arc<AtomicUsize>,
}

impl Registry {
    /// Prepares requests; nothing is sent.
    #[must_use]
    pub fn new(settings: Settings, access: Access) -> Self {
        let connector = Connector::new(
            access.proxies.clone(),
            access.authorities.clone(),
            settings.deadlines.connect,
        );
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector.clone());
        Self(Arc::new(Shared {
            settings,
            access,
            connector,
            client,
            authorizations: Mutex::default(),
            passed_over: Mutex::default(),
            has_answered: AtomicBool::new(false),
        }))
    }

    pub(crate) fn repository(&self, reference: &OciReference) -> Repository {
        Repository {
            registry: self.clone(),
            places: Arc::new(self.0.settings.places(reference)),
            name: reference.repository().into(),
            preferred: Arc::default(),
        }
    }

    pub(crate) fn deadlines(&self) -> &Deadlines {
        &self.0.settings.deadlines
    }
}

impl Repository {
    pub(crate) fn deadlines(&self) -> &Deadlines {
        self.registry.deadlines()
    }

    /// Returns the registry's name, for people.
    pub(crate) fn name_of_registry(&self) -> String {
        self.places.last().map_or_else(String::new, |place| place.host.to_string())
    }

    /// Asks the places in turn, the one that answered last first. The error is the last place's,
    /// which is the registry itself.
    pub(crate) async fn ask(&self, ask: Ask<'_>) -> Result<Response<Incoming>, RegistryError> {
        self.ask_places(ask).await.map(|(_, response)| response)
    }

    /// As [`Repository::ask`]; returns the place that answered, too, for [`Repository::pass_over`].
    pub(crate) async fn ask_places(
        &self,
        ask: Ask<'_>,
    ) -> Result<(usize, Response<Incoming>), RegistryError> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut failed = RegistryError::Cancelled;
        for index in preferred..self.places.len() {
            let place = &self.places[index];
            if self.is_passed_over(index) {
                continue;
            }
            // The last is the registry itself; a mirror is only worth so much.
            let retries = if index + 1 < self.places.len() { 0 } else { self.deadlines().retries };
            match self.registry.0.ask(place, &self.name, ask, retries).await {
                Ok(response) => {
                    self.preferred.fetch_max(index, Ordering::Relaxed);
                    return Ok((index, response));
                }
                Err(error) => {
                    if index + 1 < self.places.len() {
                        tracing::info!(
                            mirror = place.address.as_str(),
                            error = &error as &dyn Error,
                            "the next place is asked"
                        );
                    }
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    /// Asks a mirror no more, whose answer broke off or was another content. Returns whether there
    /// was one left to ask instead of this place.
    pub(crate) fn pass_over(&self, place: usize) -> bool {
        let is_mirror = place + 1 < self.places.len();
        if is_mirror {
            let mirror = self.places[place].address.to_string();
            tracing::info!(mirror, "its answer is no good; the next place is asked");
            self.registry.0.passed_over().insert(mirror);
        }
        is_mirror
    }

    fn is_passed_over(&self, place: usize) -> bool {
        let is_mirror = place + 1 < self.places.len();
        is_mirror && self.registry.0.passed_over().contains(self.places[place].address.as_str())
    }

    /// Returns whether a mirror of this repository is asked no more.
    pub(crate) fn has_passed_over(&self) -> bool {
        (0..self.places.len()).any(|place| self.is_passed_over(place))
    }

    /// Asks for a document of at most `most` bytes and reads it; one that breaks off is asked for
    /// again as any request is, at a mirror's successor if it came from a mirror.
    pub(crate) async fn document(
        &self,
        ask: Ask<'_>,
        most: u64,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let deadlines = self.deadlines();
        let (mut attempt, mut pause) = (0, deadlines.pause);
        loop {
            let (place, response) = self.ask_places(ask).await?;
            let headers = response.headers().clone();
            let host = self.places[place].host.to_string();
            let error = match body(response, most, deadlines.document, &host, ask.what).await {
                Ok(bytes) => return Ok((headers, bytes)),
                Err(error) => error,
            };
            if !error.may_pass() {
                return Err(error);
            }
            // There are only so many mirrors, and each is passed over once.
            if self.pass_over(place) {
                continue;
            }
            if attempt >= deadlines.retries {
                return Err(error);
            }
            attempt += 1;
            tracing::debug!(attempt, error = &error as &dyn Error, "cut off; asking again");
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(deadlines.longest_pause);
        }
    }
}

impl Shared {
    /// Asks one place, repeated where that may help.
    async fn ask(
        &self,
        place: &Place,
        repository: &str,
        ask: Ask<'_>,
        retries: u32,
    ) -> Result<Response<Incoming>, RegistryError> {
        let deadlines = &self.settings.deadlines;
        let mut pause = deadlines.pause;
        let mut attempt = 0;
        loop {
            let failed = match self.exchange(place, repository, ask).await {
                Ok(response) => match self.judge(place, ask, response).await {
                    Ok(response) => return Ok(response),
                    Err(failed) => failed,
                },
                Err(failed) => failed,
            };
            let Failed { error, pause: asked } = failed;
            // A registry that has never answered is rather misspelt than about to be there.
            let is_nobody = error.is_nobody() && !self.has_answered.load(Ordering::Relaxed);
            let retries = if is_nobody { retries.min(1) } else { retries };
            if !error.may_pass() || attempt >= retries {
                return Err(error);
            }
            attempt += 1;
            if let Some(after) = asked
                && after > deadlines.longest_pause
            {
                return Err(RegistryError::Throttled { registry: place.host.to_string(), after });
            }
            tracing::debug!(attempt, error = &error as &dyn Error, "asking again");
            tokio::time::sleep(asked.unwrap_or(pause)).await;
            pause = pause.saturating_mul(2).min(deadlines.longest_pause);
        }
    }

    /// One request with its redirects, and once more with an authorization if it wants one.
    async fn exchange(
        &self,
        place: &Place,
        repository: &str,
        ask: Ask<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let key = (place.address.to_string(), repository.to_owned());
        let known = self.lock().get(&key).cloned().filter(Authorization::is_good);
        let response = self.follow(place, repository, ask, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(challenge) = challenge(response.headers()) else { return Ok(response) };
        drop(response);
        let authorization = self.authorize(place, repository, &challenge).await?;
        let answer = self.follow(place, repository, ask, authorization.as_ref()).await?;
        if let Some(authorization) = authorization
            && answer.status() != StatusCode::UNAUTHORIZED
        {
            self.lock().insert(key, authorization);
        }
        Ok(answer)
    }

    fn passed_over(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Authorization>> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn credentials(&self, place: &Place) -> Option<&Credentials> {
        // A mirror has credentials of its own; those of the registry are not for it.
        let registry = self.settings.mirrors.iter().all(|mirror| mirror.address != place.address);
        let authority = place.address.authority();
        self.access.credentials.iter().find(|credentials| {
            let host = credentials.registry();
            host.as_str() == authority || (registry && *host == place.host)
        })
    }

    /// Meets a challenge; `None` where there are no credentials for it.
    async fn authorize(
        &self,
        place: &Place,
        repository: &str,
        challenge: &Challenge,
    ) -> Result<Option<Authorization>, Failed> {
        let credentials = self.credentials(place);
        let Challenge::Bearer { realm, service, .. } = challenge else {
            return Ok(credentials.and_then(basic));
        };
        let registry = place.host.to_string();
        let what = "the request for a token";
        let protocol = |problem: String| RegistryError::Protocol {
            registry: registry.clone(),
            what: what.to_owned(),
            problem,
        };
        let realm: Uri = realm
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.authority().is_some_and(|host| !host.as_str().contains('@')))
            .ok_or_else(|| protocol("a token server that is no address".to_owned()))?;
        let encrypted = realm.scheme_str() == Some("https");
        if !encrypted && (place.address.is_https() || realm.scheme_str() != Some("http")) {
            return Err(protocol("a token server without encryption".to_owned()).into());
        }
        // The scope that the registry names may be wider than what a pull needs.
        let scope = format!("repository:{repository}:pull");
        let service = service.as_deref().unwrap_or_default();
        let request = match credentials {
            Some(Credentials::IdentityToken { token, .. }) => {
                let fields = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "banger"),
                    ("scope", &scope),
                    ("refresh_token", token.reveal()),
                ];
                Request::post(realm.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Full::from(form(&fields)))
            }
            other => {
                let query = form(&[("service", service), ("scope", &scope)]);
                let joint = if realm.query().is_some() { '&' } else { '?' };
                let mut request = Request::get(format!("{realm}{joint}{query}"));
                if let Some(authorization) = other.and_then(basic) {
                    request = request.header(AUTHORIZATION, authorization.value);
                }
                request.body(Full::default())
            }
        };
        let request = request.map_err(|error| protocol(error.to_string()))?;
        let host = realm.authority().map_or_else(String::new, ToString::to_string);
        // No redirects here: credentials go to the realm and nowhere else.
        let response = self.send(request, &host).await?;
        let status = response.status();
        if !status.is_success() {
            let pause = retry_after(response.headers());
            let message = message(response, self.settings.deadlines.document).await;
            let with_credentials = credentials.is_some();
            let error = match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
                    registry,
                    what: "a token".to_owned(),
                    message,
                    with_credentials,
                },
                _ => RegistryError::Status {
                    registry,
                    what: what.to_owned(),
                    status: status.as_u16(),
                    message,
                },
            };
            return Err(Failed { error, pause });
        }
        let limit = self.settings.deadlines.document;
        let bytes = body(response, LONGEST_TOKEN, limit, &host, what).await?;
        bearer(&bytes).map(Some).ok_or_else(|| protocol("no token".to_owned()).into())
    }

    /// Sends a request and follows its redirects. Who wants a login there, where a redirect has led,
    /// is no registry that we have one for: that is an error, and its challenge is not read.
    async fn follow(
        &self,
        place: &Place,
        repository: &str,
        ask: Ask<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let origin: Uri = format!("{}/v2/{repository}/{}", place.address, ask.path)
            .parse()
            .map_err(|_| RegistryError::Protocol {
                registry: place.host.to_string(),
                what: ask.what.to_owned(),
                problem: "an address that cannot be".to_owned(),
            })?;
        let mut uri = origin.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::builder()
                .method(ask.method)
                .uri(&uri)
                .header(ACCEPT, ask.accept)
                .header(USER_AGENT, AGENT);
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            let home = (uri.scheme(), uri.authority()) == (origin.scheme(), origin.authority());
            if let Some(authorization) = authorization
                && home
            {
                request = request.header(AUTHORIZATION, authorization.value.clone());
            }
            let host = uri.authority().map_or_else(String::new, ToString::to_string);
            let request = request.body(Full::default()).map_err(|error| {
                RegistryError::Transport { place: host.clone(), source: Arc::new(error) }
            })?;
            let response = self.send(request, &host).await?;
            let status = response.status();
            if !home && matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                let message = message(response, self.settings.deadlines.document).await;
                let (registry, what) = (host, ask.what.to_owned());
                return Err(RegistryError::Status {
                    registry,
                    what,
                    status: status.as_u16(),
                    message,
                });
            }
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            uri = self.next(&uri, response.headers())?;
        }
        Err(RegistryError::Redirect {
            from: place.host.to_string(),
            // Its query may be a signature.
            to: printable(uri.to_string().split('?').next().unwrap_or_default()),
            why: "there were too many before",
        })
    }

    /// Returns where a redirect leads, if it may be followed.
    fn next(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri, RegistryError> {
        let location = headers.get(LOCATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let location = String::from_utf8_lossy(location).into_owned();
        // A signature in the query is as good as a password.
        let shown = |text: &str| printable(text.split('?').next().unwrap_or_default());
        let refused = |why| RegistryError::Redirect {
            from: from.authority().map_or_else(String::new, ToString::to_string),
            to: shown(&location),
            why,
        };
        let next = redirected(from, &location).ok_or_else(|| refused("it is no address"))?;
        if next.scheme_str() == Some("http") {
            if from.scheme_str() == Some("https") {
                return Err(refused("it leaves encryption"));
            }
            let host = next.authority().and_then(|host| host.as_str().parse::<RegistryHost>().ok());
            if !host.is_some_and(|host| self.settings.is_plain(&host)) {
                return Err(refused("it is not encrypted, nor in registry.insecure"));
            }
        }
        Ok(next)
    }

    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        host: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        if request.uri().scheme_str() == Some("http")
            && let Ok(name) = host.parse::<RegistryHost>()
            && let Some(proxy) = self.connector.plain_proxy(&name)
            && let Some(authorization) = &proxy.authorization
            && let Ok(mut value) = HeaderValue::from_str(authorization.reveal())
        {
            value.set_sensitive(true);
            request.headers_mut().insert(PROXY_AUTHORIZATION, value);
        }
        let limit = self.settings.deadlines.answer;
        match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(Ok(response)) => {
                self.has_answered.store(true, Ordering::Relaxed);
                Ok(response)
            }
            Ok(Err(error)) => Err(unreachable(host, &error)),
            Err(_) => Err(RegistryError::Slow {
                place: host.to_owned(),
                what: "does not answer",
                after: limit,
            }),
        }
    }

    /// Turns what is no success into an error, with how long the server wants to be left alone.
    async fn judge(
        &self,
        place: &Place,
        ask: Ask<'_>,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, Failed> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let pause = retry_after(response.headers());
        let registry = place.host.to_string();
        let what = ask.what.to_owned();
        let message = message(response, self.settings.deadlines.document).await;
        let error = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let with_credentials = self.credentials(place).is_some();
                RegistryError::Unauthorized { registry, what, message, with_credentials }
            }
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what, message },
            _ => RegistryError::Status { registry, what, status: status.as_u16(), message },
        };
        Err(Failed { error, pause })
    }
}

/// Why a request failed, and how long the server wants to be left alone.
#[derive(Debug)]
struct Failed {
    error: RegistryError,
    pause: Option<Duration>,
}

impl From<RegistryError> for Failed {
    fn from(error: RegistryError) -> Self {
        Self { error, pause: None }
    }
}

async fn body(
    response: Response<Incoming>,
    most: usize,
    limit: Duration,
    place: &str,
    what: &str,
) -> Result<Bytes, RegistryError> {
    let read = Limited::new(response.into_body(), most).collect();
    match tokio::time::timeout(limit, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(RegistryError::Protocol {
                registry: place.to_owned(),
                what: what.to_owned(),
                problem: format!("more than {most} bytes"),
            })
        }
        Ok(Err(error)) => {
            Err(RegistryError::CutOff { place: place.to_owned(), source: Arc::from(error) })
        }
        Err(_) => Err(RegistryError::Slow {
            place: place.to_owned(),
            what: "does not finish its answer",
            after: limit,
        }),
    }
}

/// An error's body as the distribution specification has it.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reads what a registry says about its refusal.
async fn message(response: Response<Incoming>, limit: Duration) -> Option<String> {
    let bytes = body(response, LONGEST_ERROR, limit, "", "").await.ok()?;
    let errors: Errors = serde_json::from_slice(&bytes).ok()?;
    let first = errors.errors.first()?;
    let text = if first.message.is_empty() { &first.code } else { &first.message };
    Some(printable(text)).filter(|text| !text.is_empty())
}
