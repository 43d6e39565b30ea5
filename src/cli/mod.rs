//! What a person types and sees: the `picloud` command.
//!
//! Only this room prints. It decides wording and exit codes; everything it does is done by
//! [`crate::client`] or by a running agent.

mod agent;
mod args;
mod control;
mod failure;
mod output;
mod prompt;
mod qr;
