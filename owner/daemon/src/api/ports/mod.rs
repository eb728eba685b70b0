//! `/v1/vms/{vm}/ports`: the guest's ports, and those published on the host, one file a method.

pub mod change;
pub mod get;
