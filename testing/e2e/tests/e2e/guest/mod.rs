//! Real guests: boot, commands, terminals, disks, crashes.
//!
//! Most use an image of nothing but a busybox, which boots fastest; `debian`
//! has what needs a distribution.

mod applications;
mod belongings;
mod console;
mod copy;
mod crash;
mod crash_matrix;
mod debian;
mod detached;
mod disks;
mod doctor;
mod exec;
mod interrupt;
mod lifecycle;
mod network;
mod ports;
mod pull;
mod readme;
mod rename;
mod run;
mod ssh;
mod sync;
mod terminal;
mod upstream_images;
mod user;
mod volume;
mod walls;
mod workspace;
