//! Schedules of a project, as tasks.

use std::fs;

use serializer::schedule::meltano;

use crate::Project;
use crate::Run;
use crate::support::PROGRAM;
use crate::support::faults::Logged;
use crate::support::hosts::Host;
use crate::support::servers::{shared_postgres, url_at};

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

fn project(schedules: &str) -> Project {
    let project = Project::new();
    project.write("schedules.meltano.yml", schedules);
    project
}

#[test]
fn the_schedules_of_a_project_are_tasks_and_a_bad_one_is_left_out() {
    let project = project(SCHEDULES);
    let catalog = meltano::ask(&mut project.meltano(&[])).expect("Meltano answers");
    let left_out = "left out Meltano's schedule `minute-99`: `99` is not a minute (0-59)";
    assert_eq!(catalog.warnings, [left_out]);
    let on_request = catalog.tasks.iter().filter(|(_, task)| task.timetable.is_none());
    assert_eq!(on_request.map(|(name, _)| name).collect::<Vec<_>>(), ["once", "without"]);
    let names: Vec<_> = catalog.tasks.keys().collect();
    assert_eq!(names, ["loud", "nightly", "often", "once", "shop", "without"]);
    for (name, said) in [("nightly", "worked"), ("shop", "Extract & load complete")] {
        let task = &catalog.tasks[name];
        assert_eq!(task.command[0], "meltano");
        let args: Vec<_> = task.command[1..].iter().map(String::as_str).collect();
        let mut command = project.meltano(&args);
        command.envs(&task.env);
        let ended = Run::start(command).end();
        assert!(ended.code == 0 && ended.said(&[said]), "{ended:#?}");
    }
    let env = &catalog.tasks["nightly"].env;
    let env: Vec<_> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["MELTANO_JOB_TRIGGER=serializer", "REGION=north"]);
}

#[test]
fn what_meltano_refuses_is_told_in_one_line() {
    let project = project("schedules:\n- name: a\n  interval: '@daily'\n  job: missing\n");
    let error = meltano::ask(&mut project.meltano(&[])).expect_err("the job is missing");
    let expected = "cannot read the schedules of Meltano (exit status: 1): JobNotFoundError: Job \
                    'missing' was not found.";
    assert_eq!(error, expected);
}

/// A job that goes on when it is let.
const WAITING: &str = "
jobs:
- name: long
  tasks:
  - stage:waits
schedules:
- name: minutely
  interval: '* * * * *'
  job: long
";

/// A scheduler of the project on a host.
fn node(project: &Project, host: &Host, number: usize) -> Logged {
    let log = project.path(&format!("log.{number}"));
    let mut command = host.command("env");
    command.arg(format!("--chdir={}", project.root.display())).arg(PROGRAM).args([
        "schedule",
        "start",
        "--meltano",
    ]);
    let like = project.command("env");
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let programs = project.meltano.parent().expect("a directory").display().to_string();
    command.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()));
    command.env("SERIALIZER_STORE", url_at(host.address_of_server(shared_postgres().port())));
    command.env("SERIALIZER_LEASE_SECONDS", "6");
    let file = fs::File::create(&log).expect("a file");
    command.stdout(file.try_clone().expect("it can be shared")).stderr(file);
    Logged::of(command, log)
}

#[test]
fn a_job_of_a_host_that_has_died_in_the_middle_is_run_by_another_one() {
    let project = project(WAITING);
    let hosts = [Host::new("one"), Host::new("two")];
    let first = node(&project, &hosts[0], 0);
    first.until_said(" waits");
    let second = node(&project, &hosts[1], 1);
    hosts[0].lose_power();
    second.until_said(" waits");
    project.open_gate();
    second.until_said("is done");
    assert!(second.said().contains("minutely | serializer: `minutely` of "), "{}", second.said());
}
