//! What the matrix is made of.

use std::fmt;

use banger_engine::{Action, Step};

/// What happens at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the command line, which waits for it.
    KillClient,
    /// SIGKILL to `bangerd`.
    KillDaemon,
    /// SIGKILL to `bangerd-root`.
    KillHelper,
    /// SIGKILL to the VMM.
    KillVmm,
    /// The act says that the disk is full.
    NoSpace,
    /// The root helper refuses the act.
    Refused,
    /// The act takes too long.
    Timeout,
}

/// One place in the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub action: Action,
    pub step: Step,
    /// After the act and before it is recorded; else before the act.
    pub is_done: bool,
    pub fault: Fault,
}

impl Fault {
    pub const ALL: [Self; 7] = [
        Self::KillClient,
        Self::KillDaemon,
        Self::KillHelper,
        Self::KillVmm,
        Self::NoSpace,
        Self::Refused,
        Self::Timeout,
    ];

    /// The heading of its column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillClient => "kill banger",
            Self::KillDaemon => "kill bangerd",
            Self::KillHelper => "kill bangerd-root",
            Self::KillVmm => "kill VMM",
            Self::NoSpace => "ENOSPC",
            Self::Refused => "refusal",
            Self::Timeout => "timeout",
        }
    }

    /// The word of the hook for it.
    pub const fn hook(self) -> &'static str {
        match self {
            Self::KillClient | Self::KillHelper | Self::KillVmm => "hold",
            Self::KillDaemon => "kill",
            Self::NoSpace => "enospc",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
        }
    }
}

impl Cell {
    /// All cells; those of an action stand together.
    pub fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for action in Action::ALL {
            for step in action.steps() {
                for is_done in [false, true] {
                    let cell = |fault| Self { action, step, is_done, fault };
                    cells.extend(Fault::ALL.map(cell));
                }
            }
        }
        cells
    }

    /// Every step of every action once, with a fault that the seed chooses.
    pub fn sample(mut seed: u64) -> Vec<Self> {
        let mut below = |most: usize| {
            // A linear congruential generator (Knuth's MMIX); its upper bits are the good ones.
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % most
        };
        let mut cells = Vec::new();
        for action in Action::ALL {
            for step in action.steps() {
                let fault = Fault::ALL[below(Fault::ALL.len())];
                cells.push(Self { action, step, is_done: below(2) == 1, fault });
            }
        }
        cells
    }

    /// What the file `fault` is to hold.
    pub fn hook(self) -> String {
        let moment = if self.is_done { ".done" } else { "" };
        format!("{}{moment}={}", self.step.name(), self.fault.hook())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = if self.is_done { "after" } else { "before" };
        write!(out, "{}, {moment} {}: {}", self.action.name(), self.step.name(), self.fault.name())
    }
}

#[test]
fn every_step_is_in_the_matrix_and_in_each_sample() {
    for step in Step::ALL {
        assert!(Cell::all().iter().any(|cell| cell.step == *step), "{}", step.name());
        assert!(Cell::sample(7).iter().any(|cell| cell.step == *step), "{}", step.name());
    }
    let faults = |seed| Cell::sample(seed).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(faults(7), faults(7));
    assert_ne!(faults(7), faults(8));
}
