//! Images from registries: the daemon fetches and builds, with what we know of the user.

use banger_daemon_api::artifact::Image;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::operation::{Operation, OperationStarted};
use banger_daemon_api::pull::PullImage;
use banger_daemon_api::routes;
use banger_types::{ImageName, KernelName, OciReference};

use super::explain_taken;
use crate::client::{Client, ClientError};
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{self, Followed};
use crate::progress::Progress;
use crate::registry;
use crate::ui::Ui;

/// How often the failed work of another command is begun again by us.
const TAKE_OVERS: usize = 3;

/// What to pull, and what to call it.
#[derive(Clone, Debug)]
pub struct RegistryPull {
    /// The image in its registry.
    pub reference: OciReference,
    /// Its name here.
    pub name: ImageName,
    /// The kernel its machines boot unless told otherwise.
    pub default_kernel: Option<KernelName>,
    /// Replace an image of this name that comes from elsewhere.
    pub replace: bool,
}

/// Pulls an image, taking over from another command where that gives up.
pub async fn pull_reference(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    pull: &RegistryPull,
) -> Result<(), CliError> {
    let subject = format!("image {}", pull.name);
    for _ in 0..TAKE_OVERS {
        let luggage = tokio::select! {
            luggage = registry::luggage(client, &pull.reference) => luggage?,
            interrupt = interrupts.next() => {
                return Err(CliError::interrupted(interrupt, "interrupted, nothing was begun"));
            }
        };
        let request = PullImage {
            name: pull.name.clone(),
            reference: pull.reference.clone(),
            credentials: luggage.credentials,
            proxies: luggage.proxies,
            authorities: luggage.authorities,
            default_kernel: pull.default_kernel.clone(),
            replace: pull.replace,
        };
        let started: OperationStarted = client
            .post(routes::PULLS, &request)
            .await
            .map_err(|error| explain_taken(client.explain(error), "image", pull.name.as_str()))?;
        let progress = Progress::new(ui, subject.clone());
        let joined = started.joined;
        let show = |snapshot: &Operation| {
            if joined { progress.of_another(snapshot) } else { progress.operation(snapshot) }
        };
        let end = operation::follow(client, started, &show, interrupts).await?;
        drop(progress);
        match end {
            Followed::Cancelled if joined => {
                ui.status(format_args!("{subject}: the other banger was stopped; taking over"));
            }
            Followed::Failed(error) if joined => ui.status(format_args!(
                "{subject}: the other banger failed ({}); trying ourselves",
                error.message
            )),
            Followed::Interrupted { interrupt, undone: true } => {
                let message = format!(
                    "interrupted, {subject} is undone; the next pull goes on with what has arrived"
                );
                return Err(CliError::interrupted(interrupt, message));
            }
            end => return end.into_result(&subject),
        }
    }
    Err(CliError::new(format!("{subject}: another banger works on it, and fails"))
        .hint("run the command again when that has ended"))
}

/// Returns the image of a reference where it is here under `name`; another one there is an error.
pub async fn find_reference(
    client: &Client,
    reference: &OciReference,
    name: &ImageName,
) -> Result<Option<Image>, CliError> {
    let image: Image = match client.get(&routes::image(name)).await {
        Ok(image) => image,
        Err(ClientError::Api(error)) if error.code == ErrorCode::NotFound => return Ok(None),
        Err(error) => return Err(client.explain(error)),
    };
    let same =
        OciReference::recorded(&image.source).is_some_and(|source| match reference.digest() {
            Some(digest) => source.digest() == Some(digest),
            None => source.unpinned() == *reference,
        });
    if same {
        return Ok(Some(image));
    }
    Err(CliError::new(format!(
        "image {name} is here, and is not {reference}: it comes from {}",
        image.source
    ))
    .hint(format!("--image {name} takes the one that is here"))
    .hint(format!("banger image pull {reference} --name NAME")))
}
