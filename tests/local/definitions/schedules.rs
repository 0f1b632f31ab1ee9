//! What a real Meltano has said of a project's schedules (`meltano.json`).

use serializer::schedule::definition::Definition;
use serializer::schedule::meltano;

use super::zone_of;

const RECORDED: &str = include_str!("meltano.json");

/// A schedule as a line: when, what, and with which variables besides that of the trigger.
fn line(task: &Definition) -> String {
    let mut env = task.env.clone();
    assert_eq!(env.remove("MELTANO_JOB_TRIGGER").as_deref(), Some("serializer"), "{task:?}");
    let env: String = env.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    let zone = if task.timetable.is_some() { zone_of(task) } else { "on request".to_owned() };
    format!("{}, {zone}: {}{env}", task.schedule, task.command.join("|"))
}

#[test]
fn each_schedule_of_meltano_is_a_task_and_a_bad_one_is_left_out_alone() {
    let catalog = meltano::parse(RECORDED).expect("Meltano's answer");
    let tasks = catalog.tasks.iter().map(|(name, task)| format!("{name} = {}", line(task)));
    let tasks: Vec<_> = tasks.collect();
    assert_eq!(
        tasks,
        [
            "Loud = @Daily, UTC: meltano|run|orders FULL=true PARALLEL=5 REGION=north",
            "On-Request = @Once, on request: meltano|run|orders",
            "manual = @manual, on request: meltano|run|orders",
            "nightly = @daily, UTC: meltano|run|orders",
            "often = */5 * * * *, UTC: meltano|run|orders",
            "on-request = @once, on request: meltano|run|orders",
            "shop-to-jsonl = @hourly, UTC: \
             meltano|elt|tap-shop|target-jsonl|--transform=skip|--state-id=shop-to-jsonl",
            "without = on request, on request: meltano|run|orders",
        ]
    );
    let left_out = |name: &str, why: &str| format!("left out Meltano's schedule `{name}`: {why}");
    assert_eq!(
        catalog.warnings,
        [
            left_out("minute-99", "`99` is not a minute (0-59)"),
            left_out("number", "invalid type: integer `5`, expected a string"),
            left_out("two words", "expected a name of 1 to 100 letters, digits, `.`, `_` and `-`"),
            left_out("often", "another schedule has the same name"),
            left_out("list", "`env.A` is not a text"),
        ]
    );
}

#[test]
fn an_answer_that_is_not_one_of_meltano_is_refused_in_one_line() {
    for (text, why) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{}", "missing field `schedules` at line 1 column 2"),
        (
            "{\"schedules\": {\"job\": 5}}",
            "invalid type: integer `5`, expected a sequence at line 1 column 23",
        ),
    ] {
        let error = meltano::parse(text).expect_err(text);
        assert_eq!(error, format!("cannot read the schedules of Meltano: {why}"), "{text}");
    }
    for schedule in ["5", "{}", "{\"name\": \"a\"}", "{\"name\": 5, \"elt_args\": []}"] {
        let json = format!("{{\"schedules\": {{\"elt\": [], \"job\": [{schedule}]}}}}");
        let catalog = meltano::parse(&json).expect(schedule);
        assert_eq!((catalog.tasks.len(), catalog.warnings.len()), (0, 1), "{schedule}");
    }
}
