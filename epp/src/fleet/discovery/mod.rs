//! Which endpoints there should be: from flags ([`static_list`]) or from a file ([`mod@file`]).
//!
//! Every source ends in the same value, a list of [`EndpointSpec`](super::EndpointSpec), handed
//! whole to [`Fleet::apply`](super::Fleet::apply).

pub mod file;
pub mod static_list;
