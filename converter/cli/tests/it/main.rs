//! The `towline` binary as a user meets it: arguments, environment, exit codes, what is on stdout, what is published.

mod control;
mod convert;
mod daemon;
mod hub;
mod read_back;
mod refusals;
mod registry;
mod run;
mod status;
