//! A cluster of MariaDB servers (Galera), each of which takes writes: hosts that use different ones
//! exclude each other.

use std::fs;
use std::io::BufReader;
use std::process::{ChildStdout, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::faults::Logged;
use crate::support::servers::Galera;
use crate::support::stores::Store;
use crate::support::{next_line, rounds, until};

/// The same lock, by each of the nodes.
fn stores(cluster: &Galera, lease: Duration) -> [Store; 3] {
    let first =
        Store { lease: lease.as_secs_f64().to_string(), ..Store::at(&cluster.nodes[0].url()) };
    let others = [1, 2].map(|node: usize| first.through(&cluster.nodes[node].url()));
    let [second, third] = others;
    [first, second, third]
}

#[test]
fn counting_by_different_nodes_loses_nothing() {
    let cluster = Galera::start();
    let stores = stores(&cluster, Duration::from_secs(60));
    assert_eq!(stores[0].run(&["initialize"]).code, 0);
    let dir = stores[0].locks.dir();
    fs::write(dir.join("counter"), "0\n").expect("it can be written");
    let count = rounds(20);
    let script = format!(
        r#"cd {}
           round='read -r n < counter; sleep 0.001; echo $((n + 1)) > counter; echo $SERIALIZER_FENCING_TOKEN >> tokens'
           for i in {{1..{count}}}; do
               "$S" run --sleep-seconds 0.05 -- sh -c "$round" || exit
           done"#,
        dir.display()
    );
    thread::scope(|scope| {
        for store in stores.iter().chain(&stores) {
            let script = &script;
            scope.spawn(move || {
                let ended = store.script(script);
                assert!(ended.code == 0, "{ended:?}");
            });
        }
    });
    let counted = fs::read_to_string(dir.join("counter")).expect("it can be read");
    assert_eq!(counted.trim(), (6 * count).to_string());
    let tokens = fs::read_to_string(dir.join("tokens")).expect("it can be read");
    let tokens: Vec<u64> = tokens.lines().map(|token| token.parse().expect("a number")).collect();
    assert!(tokens.len() == 6 * count && tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}

#[test]
fn of_many_processes_that_try_at_the_same_moment_by_different_nodes_one_gets_the_lock_at_most() {
    let cluster = Galera::start();
    assert_eq!(stores(&cluster, Duration::from_secs(60))[0].run(&["initialize"]).code, 0);
    let mut winners = 0;
    let count = rounds(30);
    for _ in 0..count {
        // A fresh lock, and after that one that was released.
        let stores = stores(&cluster, Duration::from_secs(60));
        for _ in 0..2 {
            let start = |store: &Store| {
                let mut command =
                    store.serializer(&["run", "-n", "sh", "-c", "echo held; read -r line"]);
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("it starts")
            };
            let mut all: Vec<_> = stores.iter().chain(&stores).map(start).collect();
            // A holder keeps it until all other processes have given up.
            let mut open: Vec<_> =
                all.iter_mut().map(|child| (child.stdin.take(), child.stdout.take())).collect();
            let says = |out: &mut Option<ChildStdout>| {
                let mut output = BufReader::new(out.as_mut().expect("its output"));
                next_line(&mut output) == "held\n"
            };
            let held = open.iter_mut().filter_map(|(_, out)| says(out).then_some(())).count();
            assert!(held <= 1, "{held} hold it");
            winners += held;
            drop(open);
            all.iter_mut().for_each(|child| assert!(child.wait().is_ok()));
        }
    }
    // A node may still show a past holder, so that no process tries; but not often.
    assert!(winners > count, "{winners}");
}

#[test]
fn a_node_that_has_lost_the_others_grants_nothing_and_says_so_and_waiters_get_it_when_they_are_back()
 {
    let mut cluster = Galera::start();
    let [first, second, _] = stores(&cluster, Duration::from_secs(600));
    let mut owner = second.shell();
    owner.lock();
    until("it is not known to the other node", || first.state() == "held");
    let waiter = Logged::start(&first, &["run", "-v", "echo", "done"]);
    let fresh = first.through(&first.url);
    let fresh = Store { name: format!("{}-2", fresh.name), ..fresh };
    let [_, lost, also_lost] = &mut cluster.nodes;
    lost.kill();
    also_lost.kill();
    waiter.until_said("not yet prepared");
    let refused = fresh.run(&["run", "-n", "true"]);
    assert!(refused.code == 1 && refused.stderr.contains("not yet prepared"), "{refused:?}");
    // The operator's repair when the other nodes are gone for good.
    cluster.nodes[0].sql("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'");
    cluster.nodes[1].restart();
    cluster.nodes[2].restart();
    owner.unlock();
    let (code, said) = waiter.end();
    assert!(code == 0 && said.contains("locked"), "{code} {said}");
}
