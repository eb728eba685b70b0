//! Failures at will, for crash tests.
//!
//! In builds with the feature `fault-hooks` (never a default one) the file `fault` in the state
//! directory, read at each step, holds `<step>=<what>`: the step's name, with `.done` behind it to
//! strike after the act and before it is recorded. In every other build the hooks are empty.
//!
//! | what | then |
//! |---|---|
//! | `error` | the step fails |
//! | `enospc` | as on a full disk |
//! | `refused` | as refused by the root helper |
//! | `timeout` | as after a deadline |
//! | `hang` | it never ends |
//! | `hold` | it goes on when the file is removed |
//! | `kill` | the daemon gets a SIGKILL, from itself |
//!
//! A file `fault.struck` beside it says that the step was reached.

use crate::error::EngineError;
use crate::step::Step;

/// When in a step a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The intent is recorded, nothing is done.
    Before,
    /// The act is done and not recorded.
    Done,
}

/// The fault to strike, if any.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    #[cfg(any(test, feature = "fault-hooks"))]
    armed: Option<hooks::Fault>,
    #[cfg(any(test, feature = "fault-hooks"))]
    directory: Option<std::path::PathBuf>,
}

impl Faults {
    /// Returns no faults; in builds with `fault-hooks`, what the file in `state_dir` says. A file,
    /// because the command line starts the daemon with a clean environment.
    #[must_use]
    pub fn of_state(state_dir: &std::path::Path) -> Self {
        #[cfg(feature = "fault-hooks")]
        return Self { armed: None, directory: Some(state_dir.to_owned()) };
        #[cfg(not(feature = "fault-hooks"))]
        {
            let _ = state_dir;
            Self::default()
        }
    }

    #[cfg(not(any(test, feature = "fault-hooks")))]
    #[expect(clippy::unused_async, reason = "the hook of other builds")]
    pub(crate) async fn strike(&self, _: Step, _: Moment) -> Result<(), EngineError> {
        Ok(())
    }

    #[cfg(any(test, feature = "fault-hooks"))]
    pub(crate) async fn strike(&self, step: Step, moment: Moment) -> Result<(), EngineError> {
        let directory = self.directory.as_deref();
        match self.armed.or_else(|| hooks::Fault::read(directory?)) {
            Some(fault) if fault.step == step && fault.moment == moment => {
                fault.strike(directory).await
            }
            _ => Ok(()),
        }
    }

    /// What the file in a directory says at each step.
    #[cfg(test)]
    pub(crate) fn told_by(directory: &std::path::Path) -> Self {
        Self { armed: None, directory: Some(directory.to_owned()) }
    }

    #[cfg(test)]
    pub(crate) fn at(text: &str) -> Self {
        Self { armed: Some(hooks::Fault::parse(text).unwrap()), directory: None }
    }
}

#[cfg(any(test, feature = "fault-hooks"))]
mod hooks {
    use std::path::Path;
    use std::time::Duration;

    use super::{EngineError, Moment, Step};
    use crate::seams::VmmError;

    const FILE: &str = "fault";
    const STRUCK: &str = "fault.struck";
    /// How often a step that is held looks whether it may go on.
    const PACE: Duration = Duration::from_millis(5);

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Error,
        NoSpace,
        Refused,
        Timeout,
        Hang,
        Hold,
        Kill,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Fault {
        pub(super) step: Step,
        pub(super) moment: Moment,
        kind: Kind,
    }

    impl Fault {
        pub(super) fn parse(text: &str) -> Option<Self> {
            let (place, kind) = text.split_once('=')?;
            let (name, moment) = match place.strip_suffix(".done") {
                Some(name) => (name, Moment::Done),
                None => (place, Moment::Before),
            };
            let step = Step::ALL.iter().copied().find(|step| step.name() == name)?;
            let kind = match kind {
                "error" => Kind::Error,
                "enospc" => Kind::NoSpace,
                "refused" => Kind::Refused,
                "timeout" => Kind::Timeout,
                "hang" => Kind::Hang,
                "hold" => Kind::Hold,
                "kill" => Kind::Kill,
                _ => return None,
            };
            Some(Self { step, moment, kind })
        }

        pub(super) fn read(directory: &Path) -> Option<Self> {
            Self::parse(std::fs::read_to_string(directory.join(FILE)).ok()?.trim())
        }

        pub(super) async fn strike(self, directory: Option<&Path>) -> Result<(), EngineError> {
            if let Some(directory) = directory {
                let _ = std::fs::write(directory.join(STRUCK), self.step.name());
            }
            let io = |source| {
                Err(EngineError::Io {
                    act: "injecting a fault into",
                    object: self.step.to_string(),
                    source,
                })
            };
            match self.kind {
                Kind::Error => io(std::io::Error::other("fault hook")),
                Kind::NoSpace => io(std::io::ErrorKind::StorageFull.into()),
                Kind::Refused => Err(EngineError::from(VmmError::Refused {
                    vmm: "the root helper",
                    command: self.step.name().to_owned(),
                    message: "fault hook".to_owned(),
                })),
                Kind::Timeout => {
                    let act = self.step.name().to_owned();
                    Err(EngineError::from(VmmError::Timeout { act, seconds: 0 }))
                }
                Kind::Hang => std::future::pending().await,
                Kind::Hold => {
                    while directory.is_some_and(|directory| directory.join(FILE).exists()) {
                        tokio::time::sleep(PACE).await;
                    }
                    Ok(())
                }
                Kind::Kill => {
                    let _ = rustix::process::kill_process(
                        rustix::process::getpid(),
                        rustix::process::Signal::KILL,
                    );
                    std::future::pending().await
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn faults_are_named_by_step_moment_and_kind() {
            for bad in ["", "x", "launch_vmm", "launch_vmm=", "nothing=kill", "launch_vmm.x=kill"] {
                assert_eq!(Fault::parse(bad), None, "{bad}");
            }
            for step in Step::ALL {
                for kind in ["error", "enospc", "refused", "timeout", "hang", "hold", "kill"] {
                    let before = Fault::parse(&format!("{}={kind}", step.name())).unwrap();
                    let done = Fault::parse(&format!("{}.done={kind}", step.name())).unwrap();
                    assert_eq!((before.step, before.moment), (*step, Moment::Before));
                    assert_eq!((done.step, done.moment), (*step, Moment::Done));
                }
            }
        }
    }
}
