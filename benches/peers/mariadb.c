// The cheapest lock that MariaDB's client library can take and release: two processes, a statement each; and as sera does it, by GET_LOCK
// in one process, or held until its input ends. `mariadb PORT PASSWORD lock|unlock|get_lock|hold`
#include <mysql.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ask(MYSQL *connection, const char *statement) {
    if (mysql_query(connection, statement)) {
        fprintf(stderr, "%s\n", mysql_error(connection));
        exit(1);
    }
    MYSQL_RES *result = mysql_store_result(connection);
    int answer = 0;
    if (result) {
        MYSQL_ROW row = mysql_fetch_row(result);
        answer = row && row[0] && !strcmp(row[0], "1");
        mysql_free_result(result);
    } else {
        answer = mysql_affected_rows(connection) == 1;
    }
    return answer;
}

int main(int argc, char **argv) {
    (void)argc;
    MYSQL *connection = mysql_init(NULL);
    if (!mysql_real_connect(connection, "127.0.0.1", "meltano", argv[2], "meltano", atoi(argv[1]), NULL, 0)) {
        fprintf(stderr, "%s\n", mysql_error(connection));
        return 1;
    }
    int done;
    if (!strcmp(argv[3], "get_lock"))
        done = ask(connection, "SELECT GET_LOCK('peer', 3600)") && ask(connection, "SELECT RELEASE_LOCK('peer')");
    else if (!strcmp(argv[3], "hold")) {
        done = ask(connection, "SELECT GET_LOCK('peer', 3600)");
        puts("held");
        fflush(stdout);
        while (getchar() != EOF) {
        }
        done = done && ask(connection, "SELECT RELEASE_LOCK('peer')");
    } else if (!strcmp(argv[3], "lock"))
        done = ask(connection, "UPDATE peer SET held = 1 WHERE NOT held");
    else
        done = ask(connection, "UPDATE peer SET held = 0 WHERE held");
    mysql_close(connection);
    return !done;
}
