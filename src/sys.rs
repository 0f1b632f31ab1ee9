//! What the operating system knows: processes, clocks and time zones; and how foreign text is shown.

pub mod local_time;
pub mod process;
pub(crate) mod text;
pub mod timer;
