#!/bin/sh
# The role that workers and producers log in as, when its password is given.
set -eu
[ -n "${TASKLIB_WORKER_PASSWORD:-}" ] || exit 0
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password TASKLIB_WORKER_PASSWORD
create role worker login password :'password';
grant tasklib_worker, tasklib_producer to worker;
SQL
