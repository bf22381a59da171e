create or replace function tasklib.purge(
  older_than interval,
  state text default null,
  max_rows int default 10000
)
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_until timestamptz;
  v_ids uuid[];
begin
  if older_than is null or older_than < interval '0' or older_than > interval '1000 years' then
    perform tasklib._reject('TL001', 'older_than ' || tasklib._shown(older_than::text)
      || ' is out of range', null, 'Pass an interval such as interval ''30 days''.');
  elsif state not in ('completed', 'failed', 'cancelled') then
    perform tasklib._reject('TL001', 'tasks in state ' || tasklib._shown(state)
      || ' cannot be purged', null, 'Pass completed, failed or cancelled, or null for all three.');
  elsif max_rows is null or max_rows not between 1 and 100000 then
    perform tasklib._reject('TL001', 'max_rows ' || tasklib._shown(max_rows::text) || ' is out of range',
      null, 'Pass 1 to 100000, and call again while it returns that many.');
  end if;
  v_until := clock_timestamp() - older_than;
  v_ids := array(
    select done.task_id from tasklib.done
    where done.task_id < tasklib._first_id(v_until)
      and done.finished_at < v_until
      and (purge.state is null
        or done.state = case purge.state when 'completed' then 1 when 'failed' then 2 else 3 end)
    order by done.task_id limit purge.max_rows
    for update skip locked);
  return tasklib._erase(v_ids);
end;
$$;
comment on function tasklib.purge(interval, text, int) is
  'Delete finished tasks with all that belongs to them, oldest first, at most max_rows a call; returns how many. Pending and running tasks are never touched. Errors: TL001.';

create or replace function tasklib._erase(ids uuid[])
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if cardinality(ids) = 0 then
    return 0;
  end if;
  delete from tasklib.tag
  using tasklib.task, jsonb_each(task.tags) as entry
  where task.id = any (ids)
    and task.tags is not null
    and tag.pair = tasklib._tag_pair(entry.key, entry.value)
    and tag.task_id = task.id;
  delete from tasklib.failure where failure.task_id = any (ids);
  delete from tasklib.allowance where allowance.task_id = any (ids);
  delete from tasklib.progress where progress.task_id = any (ids);
  delete from tasklib.task where task.id = any (ids);
  delete from tasklib.done where done.task_id = any (ids);
  return cardinality(ids);
end;
$$;
comment on function tasklib._erase(uuid[]) is
  'Internal. Deletes finished tasks, whose done rows the caller has locked; returns how many.';

-- Goes from the oldest to the retention time and then starts again: what finished late is found on the
-- next round.
create or replace function tasklib._retain(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue tasklib.queue;
  v_last uuid;
  v_seen int;
  v_count int := 0;
  v_ids uuid[];
begin
  for v_queue in
    select queue.* from tasklib.queue where queue.retention is not null order by queue.name
  loop
    exit when v_count >= max_rows;
    select count(*), (array_agg(old.task_id order by old.task_id desc))[1],
      coalesce(array_agg(old.task_id) filter (where old.expired), '{}')
      into v_seen, v_last, v_ids
    from (
      select done.task_id,
        done.finished_at < clock_timestamp() - v_queue.retention and body.queue = v_queue.name as expired
      from tasklib.done
        cross join lateral (select task.* from tasklib.task where task.id = done.task_id offset 0) as body
      where done.task_id > coalesce(v_queue.purge_from, '00000000-0000-0000-0000-000000000000')
        and done.task_id < tasklib._first_id(clock_timestamp() - v_queue.retention)
      order by done.task_id limit max_rows - v_count
      for update of done skip locked
    ) as old;
    v_count := v_count + tasklib._erase(v_ids);
    if v_seen > 0 or v_queue.purge_from is not null then
      update tasklib.queue set purge_from = v_last where queue.name = v_queue.name;
    end if;
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._retain(int) is
  'Internal. Looks at up to max_rows finished tasks and deletes those past the retention of their queue; returns how many.';
