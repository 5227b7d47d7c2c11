//! Which endpoints there should be: from flags ([`static_list`]) or from a file ([`mod@file`]).
//!
//! An entry of either is one endpoint per port ([`ranks`]). Every source ends in the same value, a list of [`EndpointSpec`](super::EndpointSpec), handed
//! whole to [`Fleet::apply`](super::Fleet::apply).

pub mod file;
pub mod ranks;
pub mod static_list;
