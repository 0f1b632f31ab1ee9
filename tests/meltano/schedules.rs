//! Schedules of a project, as tasks.

use serializer::schedule::meltano;

use crate::{Project, Run};

const SCHEDULES: &str = "
schedules:
- name: nightly
  interval: '@daily'
  job: guarded
  env:
    REGION: north
- name: loud
  interval: '@Daily'
  job: guarded
- name: often
  interval: '*/5 * * * *'
  job: guarded
- name: minute-99
  interval: '1,99 * * * *'
  job: guarded
- name: once
  interval: '@once'
  job: guarded
- name: without
  interval: null
  job: guarded
- name: shop
  extractor: tap-shop
  loader: target-jsonl
  transform: skip
  interval: '@hourly'
";

/// A project with these schedules.
fn project(schedules: &str) -> Project {
    let project = Project::new();
    project.write("schedules.meltano.yml", schedules);
    project
}

#[test]
fn the_schedules_of_a_project_are_tasks_and_a_bad_one_is_left_out() {
    let project = project(SCHEDULES);
    let catalog = meltano::ask(&mut project.meltano(&[])).expect("Meltano answers");
    assert_eq!(catalog.warnings, ["left out Meltano's schedule `minute-99`: `99` is not a minute (0-59)"]);
    let tasks = catalog.tasks.iter().map(|(name, task)| (name.as_str(), task.timetable.is_some()));
    let expected = [("loud", true), ("nightly", true), ("often", true), ("once", false), ("shop", true), ("without", false)];
    assert_eq!(tasks.collect::<Vec<_>>(), expected);
    for (name, said) in [("nightly", "worked"), ("shop", "Extract & load complete")] {
        let task = &catalog.tasks[name];
        assert_eq!(task.command[0], "meltano");
        let args: Vec<_> = task.command[1..].iter().map(String::as_str).collect();
        let mut command = project.meltano(&args);
        command.envs(&task.env);
        let ended = Run::start(command).end();
        assert!(ended.code == 0 && ended.said(&[said]), "{ended:#?}");
    }
    let trigger = catalog.tasks["nightly"].env.iter().map(|(name, value)| format!("{name}={value}"));
    assert_eq!(trigger.collect::<Vec<_>>(), ["MELTANO_JOB_TRIGGER=serializer", "REGION=north"]);
}

#[test]
fn what_meltano_refuses_is_told_in_one_line() {
    let project = project("schedules:\n- name: a\n  interval: '@daily'\n  job: missing\n");
    let error = meltano::ask(&mut project.meltano(&[])).expect_err("the job is missing");
    let expected = "cannot read the schedules of Meltano (exit status: 1): \
                    JobNotFoundError: Job 'missing' was not found.";
    assert_eq!(error, expected);
}
