//! One error type for the whole crate: what was being done, why it failed, what to do about it.
//!
//! A [`Kind`] decides the exit code; the message names the op, file and shapes; the hint says what to do next.
//! `main` prints `error:`, the chain of causes, and `hint:`.

use std::{fmt, io, path::Path};

/// Shorthand for a result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is. It decides the exit code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The command line asks for something that makes no sense (exit code 2).
    Usage,
    /// Data files are missing, damaged or not what they claim to be.
    Data,
    /// Reading or writing a file failed.
    Io,
    /// Operands of an operation do not fit together.
    Shape,
    /// A checkpoint or a run's folder cannot be used.
    Checkpoint,
    /// A device is missing or failed.
    Device,
    /// Training left the finite numbers.
    Diverged,
    /// A check against the reference failed.
    Selftest,
    /// The user pressed Ctrl-C; what was done is saved (exit code 130).
    Interrupted,
}

/// A failure, with its causes and a hint.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`: what was being done, to what, and what is wrong.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None, source: None }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Operands that do not fit together.
    pub fn shape(message: impl Into<String>) -> Self {
        Self::new(Kind::Shape, message)
    }

    /// A failed read or write: `doing` is a verb phrase such as "read", `path` the file.
    pub fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::new(Kind::Io, format!("cannot {doing} {}", path.display())).because(source)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the underlying cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user can do about it, when there is something.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit code of a program that ends with this error: 2 usage, 130 interrupted, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 2,
            Kind::Interrupted => 130,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}
