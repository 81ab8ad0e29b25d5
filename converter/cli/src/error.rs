//! How a failure is told: one line of causes, a hint when the next step is known, an exit code.

use std::error::Error;

use towline_hub::{HubError, ParseSourceError, PatternError, SettingsError};
use towline_registry::RegistryError;

/// What the process answers to its caller. Success is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The work was tried and did not succeed.
    Failed = 1,
    /// The command line or the configuration asks for something that cannot be.
    Usage = 2,
    /// Stopped by SIGINT, as shells report it (128 and the signal's number), or by SIGTERM.
    Interrupted = 130,
}

/// A failure that this program itself states, as opposed to the hub, the registry or the system.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Problem {
    text: String,
    hint: Option<String>,
    exit: Exit,
}

impl Problem {
    /// A piece of work that did not succeed.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, exit: Exit::Failed }
    }

    /// A command line that asks for something that cannot be.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(text) }
    }

    /// The user stopped a conversion.
    pub(crate) fn interrupted() -> Self {
        Self::stopped("nothing was published")
    }

    /// The user stopped the program; `left` says what that means for the work that was under way.
    pub(crate) fn stopped(left: &str) -> Self {
        Self { exit: Exit::Interrupted, ..Self::failed(format!("interrupted, {left}")) }
    }

    /// Adds what the user can do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The lines for stderr.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    if let Some(problem) = error.chain().find_map(|cause| cause.downcast_ref::<Problem>())
        && problem.exit == Exit::Interrupted
    {
        // What it was doing at that moment is no news to the one who stopped it.
        return format!("error: {problem}");
    }
    let mut text = format!("error: {}", causes(error));
    if let Some(hint) = error.chain().find_map(hint) {
        text.push_str("\nhint: ");
        text.push_str(&hint);
    }
    text
}

/// The exit code for `error`: the first cause that knows one decides.
pub(crate) fn exit(error: &anyhow::Error) -> Exit {
    error.chain().find_map(known_exit).unwrap_or(Exit::Failed)
}

/// Every cause, outermost first; one that repeats what was just said is left out.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if cause.is_empty() || last.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
        last = cause;
    }
    text
}

fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(problem) = cause.downcast_ref::<Problem>() {
        return problem.hint.clone();
    }
    if let Some(error) = cause.downcast_ref::<ParseSourceError>() {
        return Some(error.hint().to_owned());
    }
    let of_hub = cause.downcast_ref::<HubError>().and_then(HubError::hint);
    of_hub.or_else(|| cause.downcast_ref::<RegistryError>().and_then(RegistryError::hint))
}

fn known_exit(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(problem) = cause.downcast_ref::<Problem>() {
        return Some(problem.exit);
    }
    let of_registry = matches!(
        cause.downcast_ref::<RegistryError>(),
        Some(RegistryError::Destination { .. } | RegistryError::Name(_) | RegistryError::Config { .. })
    );
    let usage = of_registry
        || cause.is::<ParseSourceError>()
        || cause.is::<PatternError>()
        || cause.is::<SettingsError>();
    usage.then_some(Exit::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[derive(Debug, thiserror::Error)]
    #[error("write blob")]
    struct Wrapper(#[source] std::io::Error);

    #[test]
    fn causes_are_joined_without_repeats() {
        let leaf = std::io::Error::other("no space left on device");
        let error = anyhow::Error::new(Wrapper(leaf)).context("write blob").context("convert hf://a/b");
        assert_eq!(describe(&error), "error: convert hf://a/b: write blob: no space left on device");
        assert_eq!(exit(&error), Exit::Failed);
    }

    #[test]
    fn hints_and_exit_codes_come_from_the_cause_that_knows() {
        let error: anyhow::Error =
            "nowhere".parse::<towline_hub::SourceRef>().context("read SOURCE").unwrap_err();
        let text = describe(&error);
        assert!(
            text.starts_with("error: read SOURCE: source \"nowhere\" has no known scheme\nhint: "),
            "{text}"
        );
        assert_eq!(exit(&error), Exit::Usage);
        let stopped = anyhow::Error::new(Problem::interrupted()).context("convert");
        assert_eq!((exit(&stopped), Exit::Interrupted as u8), (Exit::Interrupted, 130));
        assert_eq!(describe(&stopped), "error: interrupted, nothing was published");
        let own = anyhow::Error::new(Problem::usage("no such prefix").hint("leave it out"));
        assert_eq!(describe(&own), "error: no such prefix\nhint: leave it out");
    }
}
