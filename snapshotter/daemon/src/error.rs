//! How errors become text.

use std::error::Error;

/// The error and its causes, joined by colons, without what a message repeats of its cause.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Why a call of the control API did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Problem {
    pub(crate) code: tonic::Code,
    pub(crate) text: String,
    /// The next step of whoever called, where it is known.
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(code: tonic::Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<Problem> for tonic::Status {
    /// The hint, if there is one, follows as a second line that begins with `hint: `.
    fn from(problem: Problem) -> Self {
        let Problem { code, text, hint } = problem;
        // A line of the message must not be taken for the hint.
        let text = text.replace(char::is_control, " ");
        Self::new(code, hint.map_or(text.clone(), |hint| format!("{text}\nhint: {hint}")))
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        crate::resolve::unwritten(&error)
    }
}
