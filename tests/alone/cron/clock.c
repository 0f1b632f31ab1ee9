/* Preloaded into Debian's cron: a clock that moves only when cron sleeps, from $BEGIN to $END in
 * seconds since 1970. Jobs are reported, as "MINUTE COMMAND", instead of run; minutes are counted
 * from 1970. When and what to run is left to cron. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static time_t now;

time_t time(time_t *result) {
    if (!now) now = atol(getenv("BEGIN"));
    if (result) *result = now;
    return now;
}

/* Ten seconds are what cron leaves to the jobs of each minute in a gap. If these pauses took
 * longer than a minute together, cron would start later jobs twice. */
unsigned sleep(unsigned seconds) {
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) {}
    if (seconds != 10) now += seconds;
    if (now >= atol(getenv("END"))) _exit(0);
    return 0;
}

int execle(const char *shell, const char *first, ...) {
    va_list arguments; /* shell, "-c", command, NULL, environment */
    va_start(arguments, first);
    va_arg(arguments, char *);
    dprintf(9, "%ld %s\n", (long)now / 60, va_arg(arguments, char *));
    _exit(0);
}

/* What cron logs. */
void __syslog_chk(int priority, int flag, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vdprintf(2, format, arguments);
    dprintf(2, "\n");
}

/* Of other users than the one of the namespace. */
int initgroups(const char *user, gid_t group) { return 0; }
int pam_start() { return 0; }
int pam_end() { return 0; }
int pam_set_item() { return 0; }
int pam_acct_mgmt() { return 0; }
int pam_setcred() { return 0; }
int pam_open_session() { return 0; }
int pam_close_session() { return 0; }
char **pam_getenvlist() { return calloc(1, sizeof(char *)); }
