// The cheapest lock that libpq can take and release: two processes, a statement each. `postgres CONNINFO lock|unlock`
#include <libpq-fe.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    (void)argc;
    PGconn *connection = PQconnectdb(argv[1]);
    if (PQstatus(connection) != CONNECTION_OK) {
        fprintf(stderr, "%s", PQerrorMessage(connection));
        return 1;
    }
    int locks = !strcmp(argv[2], "lock");
    PGresult *result = PQexec(connection, locks ? "UPDATE peer SET held = true WHERE NOT held" : "UPDATE peer SET held = false WHERE held");
    int failed = PQresultStatus(result) != PGRES_COMMAND_OK || strcmp(PQcmdTuples(result), "1");
    if (failed)
        fprintf(stderr, "%s", PQerrorMessage(connection));
    PQclear(result);
    PQfinish(connection);
    return failed;
}
