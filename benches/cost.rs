//! What locking costs, as ratios against peers in the same run: `cargo bench`, or a part of it:
//! `cargo bench --bench cost -- onces`.
//!
//! Each figure is the median of many rounds, in which the peers take turns. Whole processes are
//! timed, from before they are spawned until they have been waited for.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_serializer");
const PAIR_ROUNDS: usize = 300;
const HAND_OFF_ROUNDS: usize = 100;
const HAND_OFFS: usize = 1000;

/// A part of the figures, and its name.
type Part = (&'static str, fn(&Path));

fn main() {
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let is_wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    let dir = TempDir::with_prefix("serializer-bench-").expect("a temporary directory");
    let parts: [Part; 5] = [
        ("pairs", pairs),
        ("runs", runs),
        ("onces", onces),
        ("hand_offs", hand_offs),
        ("asleep", asleep),
    ];
    parts.iter().filter(|(name, _)| is_wanted(name)).for_each(|(_, part)| part(dir.path()));
    if is_wanted("rates") {
        for waiters in [2, 20, 200, 500] {
            rates(waiters, 1);
        }
        for waiters in [2, 20, 200, 500] {
            rates(waiters, HAND_OFFS / waiters);
        }
    }
}

fn command(dir: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("SERIALIZER_DIR", dir)
        .env_remove("MELTANO_PROJECT_ROOT")
        .env("LOG_LEVEL", "warning");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run(dir: &Path, program: &str, args: &[&str]) {
    let status = command(dir, program, args)
        .status()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(status.success(), "{program} {args:?} fails");
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(duration: Duration) -> String {
    format!("{:7.3} ms", duration.as_secs_f64() * 1e3)
}

fn pairs(dir: &Path) {
    let flocked = dir.join("flocked").display().to_string();
    let python = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("python3");
    let (mut ours, mut flocks, mut pythons, mut nothings) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIR_ROUNDS {
        ours.push(time(|| {
            run(dir, PROGRAM, &["lock"]);
            run(dir, PROGRAM, &["unlock"]);
        }));
        flocks.push(time(|| {
            run(dir, "flock", &["-n", &flocked, "true"]);
            run(dir, "flock", &["-n", &flocked, "true"]);
        }));
        nothings.push(time(|| {
            run(dir, "true", &[]);
            run(dir, "true", &[]);
        }));
    }
    for _ in 0..PAIR_ROUNDS / 10 {
        pythons.push(time(|| run(dir, python, &["-c", "pass"])));
    }
    let (ours, flocks, pythons, nothings) =
        (median(ours), median(flocks), median(pythons), median(nothings));
    println!("lock + unlock               {}", ms(ours));
    println!(
        "2 × flock -n FILE true      {}   ours is {:.2} of it",
        ms(flocks),
        ours.as_secs_f64() / flocks.as_secs_f64()
    );
    println!(
        "python3 -c pass             {}   ours is {:.2} of it",
        ms(pythons),
        ours.as_secs_f64() / pythons.as_secs_f64()
    );
    println!("2 × true (the floor)        {}", ms(nothings));
}

fn runs(dir: &Path) {
    let flocked = dir.join("flocked").display().to_string();
    let (mut ours, mut flocks) = (Vec::new(), Vec::new());
    for _ in 0..PAIR_ROUNDS {
        ours.push(time(|| run(dir, PROGRAM, &["run", "--", "true"])));
        flocks.push(time(|| run(dir, "flock", &[&flocked, "true"])));
    }
    let (ours, flocks) = (median(ours), median(flocks));
    println!("run -- true                 {}", ms(ours));
    println!(
        "flock FILE true             {}   ours is {:.2} of it",
        ms(flocks),
        ours.as_secs_f64() / flocks.as_secs_f64()
    );
}

/// A key that is done, and one that was never run, which is on the disk twice when it is over.
fn onces(_: &Path) {
    // Not in /tmp, which may be in memory.
    let dir = TempDir::with_prefix_in("serializer-bench-", env!("CARGO_TARGET_TMPDIR"))
        .expect("a temporary directory");
    let dir = dir.path();
    run(dir, PROGRAM, &["once", "done", "--", "true"]);
    let (mut skips, mut firsts, mut runs, mut syncs) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..PAIR_ROUNDS {
        runs.push(time(|| run(dir, PROGRAM, &["run", "--", "true"])));
        skips.push(time(|| run(dir, PROGRAM, &["once", "done", "--", "true"])));
        firsts.push(time(|| run(dir, PROGRAM, &["once", &round.to_string(), "--", "true"])));
        syncs.push(time(|| {
            let (new, name) = (dir.join("new"), dir.join("synced"));
            fs::write(&new, [b'x'; 500])
                .and_then(|()| File::open(&new)?.sync_data())
                .expect("it can be written");
            fs::rename(&new, &name)
                .and_then(|()| File::open(dir)?.sync_all())
                .expect("it can be renamed");
        }));
    }
    let (skip, first, run, sync) = (median(skips), median(firsts), median(runs), median(syncs));
    let (ratio, floor) = (skip.as_secs_f64() / run.as_secs_f64(), run + 2 * sync);
    println!("once, done                  {}   {ratio:.2} of run -- true", ms(skip));
    let ratio = first.as_secs_f64() / floor.as_secs_f64();
    println!(
        "once, the first run         {}   {ratio:.2} of run -- true and two synced files, {}",
        ms(first),
        ms(floor)
    );
}

/// A process that owns the lock for us: this process is the waiters' parent, and must not own it
/// already.
fn holder(dir: &Path) -> Child {
    let holder = command(dir, "sleep", &["3600"]).spawn().expect("sleep starts");
    run(dir, PROGRAM, &["lock", "--owner-pid", &holder.id().to_string()]);
    holder
}

fn waiter(mut command: Command) -> Child {
    let waiter = command.spawn().expect("the waiter starts");
    // Long enough to be asleep; a benchmark may guess where a test must not.
    std::thread::sleep(Duration::from_millis(30));
    waiter
}

fn hand_offs(dir: &Path) {
    let flocked = File::create(dir.join("flocked")).expect("a file");
    let (mut releases, mut deaths, mut flocks) = (Vec::new(), Vec::new(), Vec::new());
    let lock = || command(dir, PROGRAM, &["lock", "--sleep-seconds", "3600"]);
    for _ in 0..HAND_OFF_ROUNDS {
        let mut owner = holder(dir);
        let mut waiting = waiter(lock());
        releases.push(time(|| {
            run(dir, PROGRAM, &["unlock", "--owner-pid", &owner.id().to_string()]);
            waiting.wait().expect("it ends");
        }));
        owner.kill().and_then(|()| owner.wait()).expect("it dies");
        run(dir, PROGRAM, &["unlock"]);

        let mut owner = holder(dir);
        let mut waiting = waiter(lock());
        deaths.push(time(|| {
            owner.kill().expect("it dies");
            waiting.wait().expect("it ends");
        }));
        owner.wait().expect("it is dead");
        run(dir, PROGRAM, &["unlock"]);

        flocked.lock().expect("flock works");
        let mut waiting =
            waiter(command(dir, "flock", &[&dir.join("flocked").display().to_string(), "true"]));
        flocks.push(time(|| {
            flocked.unlock().expect("flock works");
            waiting.wait().expect("it ends");
        }));
    }
    let flock = median(flocks);
    println!("hand-off by flock           {}   (no process to start, then `true`)", ms(flock));
    for (what, times) in
        [("hand-off by unlock     ", releases), ("hand-off by death      ", deaths)]
    {
        let ours = median(times);
        let more = ours.as_secs_f64() * 1e3 - flock.as_secs_f64() * 1e3;
        println!("{what}     {}   {more:+.3} ms against flock", ms(ours));
    }
}

/// How fast a lock goes from hand to hand, and what that costs. Either so many have been waiting,
/// and each takes it once; then the CPU is that of their start and their lining up, too. Or so many
/// ask for it again and again.
fn rates(waiters: usize, each: usize) {
    let how = if each == 1 { "that wait    " } else { "again & again" };
    let peers = [
        ("lock; unlock", format!(r#"for i in {{1..{each}}}; do "$S" lock && "$S" unlock; done"#)),
        ("run -- true ", format!(r#"for i in {{1..{each}}}; do "$S" run -- true; done"#)),
        ("flock F true", format!(r#"for i in {{1..{each}}}; do flock "$F" true; done"#)),
    ];
    for (name, script) in peers {
        let dir = TempDir::with_prefix("serializer-bench-").expect("a temporary directory");
        let flocked = dir.path().join("flocked");
        let gate = File::create(&flocked).expect("a file");
        gate.lock().expect("flock works");
        let mut owner = holder(dir.path());
        let start = |_| {
            let mut shell = command(dir.path(), "bash", &["-c", &script]);
            shell
                .env("S", PROGRAM)
                .env("F", &flocked)
                .env("SERIALIZER_SLEEP_SECONDS", "3600")
                .spawn()
                .expect("bash starts")
        };
        let mut shells: Vec<Child> = (0..waiters).map(start).collect();
        // Long enough for all to wait; a benchmark may guess where a test must not.
        std::thread::sleep(Duration::from_millis(500 + 10 * waiters as u64));
        let spent = children_cpu();
        let took = time(|| {
            gate.unlock().expect("flock works");
            run(dir.path(), PROGRAM, &["unlock", "--owner-pid", &owner.id().to_string()]);
            for shell in &mut shells {
                assert!(shell.wait().expect("it ends").success());
            }
        });
        let spent = (children_cpu() - spent) / (each * waiters) as u32;
        let took = took / (each * waiters) as u32;
        let rate = 1.0 / took.as_secs_f64();
        println!(
            "{name}, {waiters:3} {how}  {}   {rate:4.0} hand-offs/s, {} of CPU each",
            ms(took),
            ms(spent)
        );
        owner.kill().and_then(|()| owner.wait()).expect("it dies");
    }
}

/// The CPU time of all children that have been waited for.
fn children_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("its times");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 =
        [fields[13], fields[14]].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32
}

fn asleep(dir: &Path) {
    let mut owner = holder(dir);
    let mut waiting = waiter(command(dir, PROGRAM, &["lock", "--sleep-seconds", "3600"]));
    let proc = format!("/proc/{}", waiting.id());
    let ticks = || {
        let stat = fs::read_to_string(format!("{proc}/stat")).expect("its times");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks() - before;
    let status = fs::read_to_string(format!("{proc}/status")).expect("its memory");
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its resident size")
        .trim()
        .to_owned();
    println!("a waiter asleep             {memory} of memory, {used} clock ticks of CPU in 2 s");
    waiting.kill().and_then(|()| waiting.wait()).expect("it dies");
    owner.kill().and_then(|()| owner.wait()).expect("it dies");
}
