//! Exit codes, documented in the README.

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// It was done.
    Done,
    /// It could not be done.
    Failed,
    /// The command line or a setting is wrong; nothing was tried.
    Usage,
    /// The lock was held until all attempts were used up (`EX_TEMPFAIL` of sysexits.h).
    Busy,
    /// The same, with a code that the user chose.
    Conflict(u8),
    /// The lock was lost while the command ran, which was therefore not alone (`EX_PROTOCOL`).
    Lost,
    /// Another process holds the lock, so it was not released.
    Refused,
    /// The command was found, but cannot be run.
    CannotRun,
    /// The command was not found.
    NotFound,
    /// As the command has ended; 128 + n if signal n ended it.
    Command(u8),
}

impl ExitCode {
    /// What the operating system is told.
    pub fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Busy => 75,
            Self::Conflict(code) | Self::Command(code) => code,
            Self::Lost => 76,
            Self::Refused => 77,
            Self::CannotRun => 126,
            Self::NotFound => 127,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}
