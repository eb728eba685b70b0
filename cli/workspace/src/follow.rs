//! Has a guest follow what a watch sees.

use crate::error::WorkspaceError;
use crate::repository::Workspace;
use crate::sync::{Mirror, Round};
use crate::watch::{Seen, Watch};

/// How often a repository is opened anew because there was more to watch in it.
const COVER_MOST: usize = 4;

/// What [`follow`] tells.
#[derive(Debug)]
pub enum Told<'t> {
    /// A round, and the repository as it was then.
    Round(Round, Option<&'t Workspace>),
    /// Why nothing was carried; the next change is waited for.
    Trouble(&'t WorkspaceError),
}

/// Has the guest follow the host until the watch is stopped; a round that is under way then ends first.
pub fn follow(
    sync: &mut Mirror,
    watch: &mut Watch,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<(), WorkspaceError> {
    let mut seen = Seen::Everything;
    let mut is_stale = false;
    loop {
        let round = match &seen {
            Seen::Stopped => return sync.finish(),
            Seen::Names(names) if !is_stale && !watch.is_replaced() => match sync.some(names) {
                Ok(Some(round)) => Ok(round),
                Ok(None) => whole(sync, watch),
                Err(error) => Err(error),
            },
            Seen::Names(_) | Seen::Everything => whole(sync, watch),
        };
        is_stale = round.is_err();
        match round {
            Ok(round) => tell(Told::Round(round, sync.workspace())),
            Err(error)
                if error.is_of_the_moment() || (error.is_of_the_top() && watch.has_top()) =>
            {
                tell(Told::Trouble(&error));
            }
            Err(error) => return Err(error),
        }
        seen = watch.wait()?;
    }
}

/// Carries all that is different; where there is no repository any more, one that comes is seen.
fn whole(sync: &mut Mirror, watch: &mut Watch) -> Result<Round, WorkspaceError> {
    match look(sync, watch) {
        Err(error) if watch.has_top() && (error.is_of_the_top() || watch.is_awaiting()) => {
            watch.await_top()?;
            // It may have come before it was watched for.
            look(sync, watch)
        }
        other => other,
    }
}

fn look(sync: &mut Mirror, watch: &mut Watch) -> Result<Round, WorkspaceError> {
    let mut workspace = open(sync, watch)?;
    for _ in 0..COVER_MOST {
        if !watch.cover(&workspace)? {
            break;
        }
        workspace = open(sync, watch)?;
    }
    sync.whole(workspace)
}

/// Opens the repository, and not one around it where it is gone.
fn open(sync: &Mirror, watch: &Watch) -> Result<Workspace, WorkspaceError> {
    let workspace = sync.open()?;
    if watch.top() != workspace.top && watch.top().starts_with(&workspace.top) {
        return Err(WorkspaceError::NotARepository { path: watch.top().to_owned() });
    }
    Ok(workspace)
}
