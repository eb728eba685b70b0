//! Failures at will, for crash tests.
//!
//! In builds with the feature `fault-hooks` (never a default one) the file `fault` in the state
//! directory, read when the daemon starts, holds `<step>=<what>`: the step's name, with `.done`
//! behind it to strike after the act and before it is recorded; what is `error`, `enospc`, `hang` or `kill` (SIGKILL to the daemon itself). In
//! every other build the hooks are empty.

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
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    #[cfg(any(test, feature = "fault-hooks"))]
    armed: Option<hooks::Fault>,
}

impl Faults {
    /// Returns no faults; in builds with `fault-hooks`, what the file in `state_dir` says. A file,
    /// because the command line starts the daemon with a clean environment.
    #[must_use]
    pub fn of_state(state_dir: &std::path::Path) -> Self {
        #[cfg(feature = "fault-hooks")]
        if let Ok(text) = std::fs::read_to_string(state_dir.join("fault")) {
            return Self { armed: hooks::Fault::parse(text.trim()) };
        }
        let _ = state_dir;
        Self::default()
    }

    #[cfg(not(any(test, feature = "fault-hooks")))]
    #[expect(clippy::unused_async, reason = "the hook of other builds")]
    pub(crate) async fn strike(&self, _: Step, _: Moment) -> Result<(), EngineError> {
        Ok(())
    }

    #[cfg(any(test, feature = "fault-hooks"))]
    pub(crate) async fn strike(&self, step: Step, moment: Moment) -> Result<(), EngineError> {
        match self.armed {
            Some(fault) if fault.step == step && fault.moment == moment => fault.strike().await,
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn at(text: &str) -> Self {
        Self { armed: Some(hooks::Fault::parse(text).unwrap()) }
    }
}

#[cfg(any(test, feature = "fault-hooks"))]
mod hooks {
    use super::{EngineError, Moment, Step};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Error,
        NoSpace,
        Hang,
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
                "hang" => Kind::Hang,
                "kill" => Kind::Kill,
                _ => return None,
            };
            Some(Self { step, moment, kind })
        }

        pub(super) async fn strike(self) -> Result<(), EngineError> {
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
                Kind::Hang => std::future::pending().await,
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
                for kind in ["error", "enospc", "hang", "kill"] {
                    let before = Fault::parse(&format!("{}={kind}", step.name())).unwrap();
                    let done = Fault::parse(&format!("{}.done={kind}", step.name())).unwrap();
                    assert_eq!((before.step, before.moment), (*step, Moment::Before));
                    assert_eq!((done.step, done.moment), (*step, Moment::Done));
                }
            }
        }
    }
}
