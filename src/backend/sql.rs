//! What the SQL engines have in common.
//!
//! One row per lock name: `name`, `version` (the number of the state), `record` (the text, or NULL when nobody holds the lock),
//! `changed` (for people) and `format` (of the table: another number means that a later program has changed what the columns
//! mean). Rows stay when a lock is released, so that the numbers, which are the fencing tokens, never go back.

/// The table's `format` that this program understands.
pub const FORMAT: i16 = 1;

/// What frees a lock whose row is none of ours.
pub const REPAIR: &str = "setting `record` to NULL in its row";
