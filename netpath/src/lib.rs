//! netpath: secondary interfaces of Kubernetes pods with a policed, measured path.
//!
//! Modules in the order they build on each other: `spec`, `zone`, `plan` and `observe` are pure, `kernel`,
//! `ipam` and `state` are effects that do not know each other, `exec` runs a plan, `police` is what the
//! journeys `plugin`, `cli` and `lab` share. `tests/layering.rs` holds this.

pub mod agent;
mod causes;
pub mod child;
pub mod cli;
pub mod cluster;
pub mod cri;
pub mod delegate;
pub mod exec;
pub mod flock;
pub mod grpc;
pub mod install;
pub mod ipam;
pub mod kernel;
pub mod kubelet;
pub mod lab;
pub mod observe;
pub mod plan;
pub mod plugin;
pub mod police;
pub mod root;
pub mod spec;
pub mod state;
pub mod whole;
pub mod zone;
