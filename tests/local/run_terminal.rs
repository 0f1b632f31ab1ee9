//! On a terminal, `run` is as good as not there: keys reach the command once, and a shell's jobs
//! are what they are without it.

use std::process::Command;

use crate::support::{Locks, TELLER, ended};

/// What runs on a terminal of its own, and is typed at.
const TERMINAL: &str = r#"
import os, pty, re, select, signal, sys, time

class Terminal:
    def __init__(self, *argv):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp(argv[0], argv)

    def read(self):
        ready, _, _ = select.select([self.fd], [], [], 60)
        assert ready, f"nothing more comes after {self.seen!r}"
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            data = b""
        self.seen += data.decode()
        return data

    def until(self, pattern):
        while not (found := re.search(pattern, self.seen)):
            assert self.read(), f"it ended without {pattern!r}: {self.seen!r}"
        before, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return before, found

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

def until(what, has_come):
    limit = time.monotonic() + 60
    while not has_come():
        assert time.monotonic() < limit, what

def state(pid):
    return open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0]

def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(") ")[2].split()[1])

def taken(pid, number):
    def is_taken():
        status = open(f"/proc/{pid}/status").read()
        return not any(int(bits, 16) >> (number - 1) & 1 for bits in re.findall("Pnd:\t([0-9a-f]+)", status))
    until("it takes the signal", is_taken)

# Nothing may be ignored because whoever started this has it so.
for number in [signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP]:
    signal.signal(number, signal.SIG_DFL)
serializer, teller = os.environ["S"], os.environ["TELLER"]
"#;

fn on_a_terminal(locks: &Locks, script: &str) {
    let mut python: Command = locks.command("python3");
    python
        .env("TELLER", TELLER)
        .env("TERM", "dumb")
        .env("HISTFILE", "/dev/null")
        .env("HOME", locks.dir())
        .current_dir(locks.dir())
        .args(["-c", &format!("{TERMINAL}\n{script}")]);
    let ended = ended(&mut python);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn what_is_typed_reaches_the_command_once() {
    let locks = Locks::new();
    let script = r#"
t = Terminal(serializer, "run", "python3", "-c", teller)
t.until("ready")
for key, number, name in [("\x03", signal.SIGINT, "SIGINT"), ("\x1c", signal.SIGQUIT, "SIGQUIT")] * 20:
    t.type(key)
    before, _ = t.until(name)
    taken(t.pid, number)
    os.kill(t.pid, signal.SIGUSR1)
    after, _ = t.until("SIGUSR1")
    assert name not in after, (name, after)
t.type("\x04")
t.until("end")
assert t.end() == 0
"#;
    on_a_terminal(&locks, script);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_hang_up_reaches_the_command() {
    let locks = Locks::new();
    let script = r#"
told = """
import os, signal, sys
def tell(number, frame):
    with open(os.environ["SERIALIZER_DIR"] + "/said", "a") as said:
        said.write("hung up\\n")
    sys.exit()
signal.signal(signal.SIGHUP, tell)
print("ready", flush=True)
while True:
    signal.pause()
"""
said = os.environ["SERIALIZER_DIR"] + "/said"
os.environ["TOLD"] = told
# The kernel tells the leader of the session, or the foreground group when that leader has ended.
for argv in [[serializer, "run", "python3", "-c", told], ["bash", "-c", '"$S" run python3 -c "$TOLD"; exit']]:
    t = Terminal(*argv)
    t.until("ready")
    os.close(t.fd)
    os.waitpid(t.pid, 0)
    until("the command is told", lambda: os.path.exists(said) and open(said).read())
    assert open(said).read() == "hung up\n"
    os.remove(said)
"#;
    on_a_terminal(&locks, script);
}

#[test]
fn a_shell_stops_the_job_and_lets_it_go_on() {
    let locks = Locks::new();
    let script = r#"
t = Terminal("bash", "--norc", "--noprofile", "-i")
t.type("PS1='prompt''> '; PS2=; bind 'set enable-bracketed-paste off'\n")
t.until("prompt> ")
t.type('"$S" run python3 -c "$TELLER"\n')
command = int(t.until(r"ready (\d+)")[1][1])
run = parent(command)
for _ in range(10):
    t.type("\x1a")
    t.until("Stopped")
    t.until("prompt> ")
    assert state(command) == state(run) == "T", (state(command), state(run))
    t.type("fg\n")
    t.until("SIGCONT")
    taken(run, signal.SIGCONT)
    os.kill(run, signal.SIGUSR1)
    t.until("SIGUSR1")
t.type("\x03")
t.until("SIGINT")
t.type("\x04")
t.until("end")
t.until("prompt> ")
# What reads from the terminal in the background stops, and so does the job.
t.type('"$S" run cat &\n')
until("it stops", lambda: (t.type("\n"), t.until("prompt> "))[1][0].find("Stopped") >= 0)
t.type("fg\n")
t.until("run cat")
t.type("words\n")
t.until("words\r\nwords")
t.type("\x03")
t.until("prompt> ")
t.type("echo $?; exit\n")
t.until("130")
assert t.end() == 0
"#;
    on_a_terminal(&locks, script);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_command_that_does_not_stop_is_not_left_alone() {
    let locks = Locks::new();
    let script = r#"
t = Terminal("bash", "--norc", "--noprofile", "-i")
t.type("PS1='prompt''> '\n")
t.until("prompt> ")
t.type(""""$S" run bash -c 'trap "" TSTP; echo ready $$; while read -r line; do echo "got $line"; done'\n""")
command = int(t.until(r"ready (\d+)")[1][1])
run = parent(command)
t.type("\x1a")
taken(run, signal.SIGTSTP)
t.type("a line\n")
t.until("got a line")
assert "T" not in state(run) + state(command)
t.type("\x04")
t.until("prompt> ")
t.type("exit\n")
assert t.end() == 0
"#;
    on_a_terminal(&locks, script);
}

#[test]
fn ctrl_c_ends_the_script_around_it_unless_the_command_takes_it_for_an_answer() {
    let locks = Locks::new();
    let script = r#"
script = """
for round in 1 2; do "$S" run bash -c 'echo ready $$; sleep infinity; exit'; echo went on; done
"""
t = Terminal("bash", "-c", script)
t.until("ready")
t.type("\x03")
assert t.end() == -signal.SIGINT
assert "went on" not in t.seen and "ready" not in t.seen, t.seen
script = """
"$S" run bash -c 'trap "exit 4" INT; echo ready; while :; do read -r -t 1 line; done'; echo "went on after $?"
"""
t = Terminal("bash", "-c", script)
t.until("ready")
t.type("\x03")
t.until("went on after 4")
assert t.end() == 0
"#;
    on_a_terminal(&locks, script);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_command_of_a_script_that_others_stop_and_let_go_on_does_not_leave_run_behind() {
    let locks = Locks::new();
    let script = r#"
t = Terminal("bash", "--norc", "--noprofile", "-i")
t.type("PS1='prompt''> '\n")
t.until("prompt> ")
# A shell without jobs, which lets nothing go on, in a session with one that has some.
t.type("""bash -c '"$S" run python3 -c "$TELLER"; echo "went on after $?"'\n""")
command = int(t.until(r"ready (\d+)")[1][1])
run = parent(command)
for _ in range(3):
    os.kill(command, signal.SIGSTOP)
    until("it stops", lambda: state(command) == "T")
    taken(run, signal.SIGCHLD)
    os.kill(command, signal.SIGCONT)
    t.until("SIGCONT")
t.type("\x04")
t.until("went on after 0")
t.until("prompt> ")
t.type("exit\n")
assert t.end() == 0
"#;
    on_a_terminal(&locks, script);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_shell_stops_a_job_of_which_only_leftovers_go_on() {
    let locks = Locks::new();
    let script = r#"
t = Terminal("bash", "--norc", "--noprofile", "-i")
t.type("PS1='prompt''> '; mkfifo fifo\n")
t.until("prompt> ")
t.type(""""$S" run --until-children-exit sh -c 'read -r line < fifo & echo ready $$; exit 3'\n""")
command = int(t.until(r"ready (\d+)")[1][1])
until("the command ends", lambda: not os.path.exists(f"/proc/{command}"))
children = lambda pid: open(f"/proc/{pid}/task/{pid}/children").read().split()
run = children(t.pid)[0]
for _ in range(3):
    t.type("\x1a")
    t.until("Stopped")
    t.until("prompt> ")
    t.type("fg\n")
    t.until("run --until-children-exit")
    # The shell says so before it does so; what is typed before that is taken back by it.
    until("the job goes on", lambda: all(state(pid) == "S" for pid in [run, *children(run)]))
open("fifo", "w").write("words\n")
t.until("prompt> ")
t.type("echo $?; exit\n")
t.until("3\r\n")
t.end()
"#;
    on_a_terminal(&locks, script);
}
