//! What the operating system knows: processes, clocks and time zones; and how foreign text is
//! shown.

pub mod clock;
pub mod identity;
pub mod local_time;
pub mod poll;
pub mod process;
pub mod random;
pub mod text;
pub mod timer;
