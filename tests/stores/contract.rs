//! One contract for every store: the promises of a register, of a lock on it, and of the program.

mod leases;
mod listing_objects;
mod programs;
mod register;
mod store;
mod subject;

use leases as leases_by_a_clock;

/// The tests of a suite, for each store.
macro_rules! contract {
    ($suite:ident: $($test:ident),* $(,)? => $($backend:ident),* $(,)?) => {
        mod $suite {
            contract!(@backends [$($test),*] $suite $($backend)*);
        }
    };
    (@backends $tests:tt $suite:ident $($backend:ident)*) => {
        $(mod $backend { contract!(@tests $tests $suite $backend); })*
    };
    (@tests [$($test:ident),*] $suite:ident $backend:ident) => {
        $(#[test]
        fn $test() {
            crate::contract::$suite::$test(&crate::contract::subject::Subject::$backend());
        })*
    };
}

mod of {
    contract!(register:
        what_is_created_is_loaded_and_is_created_once,
        only_what_was_seen_is_replaced,
        only_what_was_seen_is_deleted,
        names_are_independent_whatever_is_in_them,
        a_record_is_kept_whole,
        of_many_that_create_one_succeeds,
        of_many_that_are_the_first_one_succeeds,
        of_many_that_replace_one_succeeds,
        numbers_never_go_back,
        a_name_that_is_not_used_any_more_is_removed_and_numbers_still_grow
        => memory, file, directory, postgres, mysql, dynamodb, s3, azure);
    contract!(leases:
        the_same_owner_holds_it_already,
        another_owner_finds_it_held_and_does_not_release_it,
        a_foreign_token_breaks_nothing,
        a_lease_that_is_not_renewed_expires,
        a_lease_that_is_renewed_does_not_expire,
        an_expired_lease_is_not_renewed,
        a_process_that_has_lost_it_is_told_and_releases_no_other_lock,
        a_process_that_has_let_it_expire_is_told,
        slots_are_so_many_and_sharers_any_number,
        a_holder_is_told_that_its_lock_was_broken
        => memory, file, directory, postgres, mysql, dynamodb, s3, azure);
    // Directories, DynamoDB and object stores have no clock that all hosts read, and a file's
    // waiters are seen by the queue file, at which only processes stand.
    contract!(leases_by_a_clock:
        what_is_to_be_held_at_least_stays_held,
        success_is_told_to_a_waiter
        => memory, postgres, mysql);
    contract!(programs:
        of_sixteen_programs_one_gets_the_lock,
        a_counter_is_counted_by_one_at_a_time,
        names_of_every_kind_are_names_of_locks
        => file, directory, postgres, mysql, dynamodb, s3, azure);
    contract!(store:
        registers_are_listed_by_kind_with_their_states,
        a_listed_name_opens_its_register,
        a_page_begins_after_a_name,
        only_the_state_that_was_seen_is_purged
        => memory, directory, postgres, mysql);
}
