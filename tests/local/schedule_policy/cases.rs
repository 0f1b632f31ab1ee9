//! What may happen in a world, and which worlds there are.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serializer::record::Outcome;
use serializer::record::run::Interrupted;
use serializer::schedule::definition::{CatchUp, Definition, Overlap};
use serializer::schedule::timetable::Timetable;

use super::NAME;
use crate::support::simulated::{Fate, fate};

/// In milliseconds. All times of a world are half a step after a multiple of this one.
pub const STEP: u64 = 5 * 60_000;
pub const HOUR: u64 = 12 * STEP;

/// A limit of tries that is never reached.
const MANY: u32 = 1000;

#[derive(Clone, Debug)]
pub struct Kinds {
    pub definition: Definition,
    pub every: u64,
    pub nodes: usize,
    /// Whether the store has a clock, and runs have leases. Otherwise, all see each other's
    /// processes.
    pub has_clock: bool,
    /// Whether all slots are to succeed: without failures, stops and forced runs of later slots.
    pub is_complete: bool,
}

#[derive(Clone, Debug)]
pub enum Action {
    Look(usize, Fate),
    Step(usize, Outcome, Fate),
    Keep(usize, Fate),
    /// The end of a run is written when its lease has expired, and all have looked.
    EndLate(usize, Outcome),
    KillNode(usize),
    KillRunner(usize),
    /// For so many hours, or 0 without an end.
    Pause(usize, u64, Fate),
    Resume(usize, Fate),
    Stop(usize, Fate),
    Force(usize, Option<u64>, Fate),
    Arrive(usize),
    /// So many steps pass.
    Pass(u64),
    /// A host's clock is set.
    Leap(usize, i64),
}

pub fn action(is_complete: bool) -> impl Strategy<Value = Action> {
    let outcomes = [Outcome::Succeeded, Outcome::Succeeded, Outcome::Unknown, Outcome::Failed];
    let outcome = select(outcomes[..if is_complete { 3 } else { 4 }].to_vec());
    let all = (0..12_usize, fate(), outcome, 0..30_u8, any::<bool>());
    all.prop_flat_map(move |(which, fate, outcome, number, is_earlier)| {
        let (steps, ahead) = (u64::from(number), i64::from(number) * 3 - 45);
        let earlier = (is_earlier || is_complete).then_some(steps % 3 * HOUR);
        prop_oneof![
            24 => Just(Action::Look(which, fate)),
            40 => Just(Action::Step(which, outcome, fate)),
            12 => Just(Action::Keep(which, fate)),
            2 => Just(Action::EndLate(which, outcome)),
            1 => Just(Action::KillNode(which)),
            2 => Just(Action::KillRunner(which)),
            2 => Just(Action::Pause(which, steps % 4, fate)),
            2 => Just(Action::Resume(which, fate)),
            4 => Just(if is_complete { Action::Look(which, fate) } else { Action::Stop(which, fate) }),
            2 => Just(Action::Force(which, earlier, fate)),
            2 => Just(Action::Arrive(which)),
            16 => Just(Action::Pass(steps)),
            1 => Just(Action::Pass(steps * 100)),
            1 => Just(Action::Leap(which, ahead)),
        ]
    })
}

pub fn kinds(has_clock: bool, is_complete: bool) -> impl Strategy<Value = Kinds> {
    let late = (
        select(vec![CatchUp::None, CatchUp::Last, CatchUp::All]),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    let again = (1..4_u32, any::<bool>(), 0..5_u64);
    (2..5_usize, 1..4_u64, late, again).prop_map(
        move |(nodes, hours, late, (tries, is_rerun, retry_after))| {
            let every = hours * HOUR;
            let (catch_up, is_queued, is_limited, is_spread) = late;
            let millis = Duration::from_millis;
            let mut definition = Definition::new(
                Some(Timetable::Every(millis(every))),
                format!("every {hours}h"),
                Vec::new(),
            );
            definition.catch_up = if is_complete { CatchUp::All } else { catch_up };
            definition.overlap = is_queued.then_some(Overlap::Queue);
            definition.start_within = (is_limited && !is_complete).then_some(millis(HOUR * 3 / 2));
            definition.spread = millis(if is_spread { HOUR * 3 / 4 } else { 0 });
            // Beside the grid.
            assert!(definition.delay(NAME) % STEP < STEP / 2, "another name is needed");
            definition.tries = NonZeroU32::new(if is_complete { MANY } else { tries });
            definition.interrupted =
                if is_rerun || is_complete { Interrupted::Rerun } else { Interrupted::Stop };
            definition.retry_after = Some(millis(retry_after * STEP));
            Kinds { definition, every, nodes, has_clock, is_complete }
        },
    )
}
