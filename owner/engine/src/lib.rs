//! VM lifecycle: admission, phases, undo, one task per VM.
#![forbid(unsafe_code)]

pub mod seams;
