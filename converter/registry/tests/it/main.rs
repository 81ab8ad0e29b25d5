//! The client against scripted servers, a real registry, and other tools.

#![expect(clippy::print_stdout, reason = "a skipped test and a measurement say so")]

mod auth;
mod conformance;
mod pull;
mod push;
mod redirects;
mod server;
mod throughput;
