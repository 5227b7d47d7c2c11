//! What goes wrong, and what the client then sees. One module a cause.

mod clients;
mod endpoints;
mod picker;
mod requests;
