#!/usr/bin/env bash
# A worker that needs psql and nothing else: ./consumer.sh postgresql://localhost/mydb
set -euo pipefail

url=$1
lease=60

# Values go in as psql variables, so that nothing in them can become SQL.
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$url" "$@"; }

leave() {
  kill "$heartbeat" 2>/dev/null || true
  sql -v w="$worker" <<<"select tasklib.deregister_worker(:'w');" >/dev/null
}

worker=$(sql -v lease="$lease seconds" <<<"
  select tasklib.register_worker('bash', lease => :'lease', task_types => '[\"shell.sha256\"]');")

# A task may take longer than the lease: renew it each quarter, until this script ends.
while sleep $((lease / 4)); do
  sql -v w="$worker" <<<"select tasklib.heartbeat(:'w');" || exit
done >/dev/null 2>&1 &
heartbeat=$!
trap leave EXIT

while true; do
  # One call, one transaction: the claim is committed before the work begins.
  task=$(sql -v w="$worker" <<<"
    select id, attempt, kwargs ->> 'text' from tasklib.claim(:'w', max_tasks => 1);")
  [ -n "$task" ] || break
  IFS='|' read -r id attempt text <<<"$task"

  if [ "$text" = "fail" ]; then
    sql -v w="$worker" -v id="$id" -v attempt="$attempt" -v error="told to fail" <<<"
      select tasklib.fail(:'id', :'w', :attempt, :'error', retry => false);"
  else
    hash=$(printf %s "$text" | sha256sum | cut -d' ' -f1)
    sql -v w="$worker" -v id="$id" -v attempt="$attempt" -v hash="$hash" <<<"
      select tasklib.complete(:'id', :'w', :attempt, jsonb_build_object('sha256', :'hash'));"
  fi >/dev/null
done
