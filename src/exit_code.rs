//! Exit codes, documented by the program's help. A command's own code is passed on; 128 + n says
//! that signal n ended it.

/// It was done.
pub const DONE: u8 = 0;
/// It could not be done.
pub const FAILED: u8 = 1;
/// The command line or a setting is wrong; nothing was tried.
pub const USAGE: u8 = 2;
/// The lock was held until all attempts were used up (`EX_TEMPFAIL` of sysexits.h).
pub const BUSY: u8 = 75;
/// The lock was lost while the command ran, which may have overlapped with another one
/// (`EX_PROTOCOL`).
pub const LOST: u8 = 76;
/// Another process holds the lock, so it was not released.
pub const REFUSED: u8 = 77;
/// `lock --once`: the key is done, so it was not locked.
pub const ALREADY_DONE: u8 = 79;
/// The key has failed, or was interrupted, as often as it may; it was not run.
pub const GIVEN_UP: u8 = 80;
/// The command was found, but cannot be run.
pub const CANNOT_RUN: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
