-- Each branch walks one index downward and looks at a task only when it is its turn: the newest fifty
-- of a million cost fifty looks. Tags lead, then the name, then the state: the narrower first.
create or replace function tasklib.list(
  state text default null,
  name text default null,
  queue text default null,
  tags jsonb default null,
  max_rows int default 50,
  before uuid default null,
  caller tasklib.caller default current_user
)
  returns setof tasklib.tasks
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set enable_bitmapscan = off
  set enable_sort = off
as $$
declare
  v_before uuid := coalesce(list.before, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  v_all boolean := tasklib._is_admin(list.caller);
  v_pair bigint;
  v_ids refcursor;
  v_id uuid;
  v_task tasklib.tasks;
  v_left int := max_rows;
begin
  perform tasklib._check_list(list.state, list.tags, list.max_rows);
  v_pair := (select tasklib._tag_pair(entry.key, entry.value) from jsonb_each(list.tags) as entry limit 1);

  if v_pair is not null then
    open v_ids no scroll for
      select tag.task_id from tasklib.tag where tag.pair = v_pair and tag.task_id < v_before
      order by tag.pair desc, tag.task_id desc;
  elsif list.name is not null then
    open v_ids no scroll for
      select task.id from tasklib.task
      where task.type = tasklib._type_of(list.name) and task.id < v_before
      order by task.type desc, task.id desc;
  elsif list.state = 'completed' then
    open v_ids no scroll for
      select done.task_id from tasklib.done where done.task_id < v_before and done.state = 1
      order by done.task_id desc;
  elsif list.state = 'cancelled' then
    open v_ids no scroll for
      select done.task_id from tasklib.done where done.state = 3 and done.task_id < v_before
      order by done.state desc, done.task_id desc;
  elsif list.state = 'failed' then
    open v_ids no scroll for
      (select done.task_id from tasklib.done where done.state = 2 and done.task_id < v_before
        order by done.task_id desc)
      union all
      (select delayed.task_id from tasklib.delayed
        where delayed.reason = 'r' and delayed.task_id < v_before order by delayed.task_id desc)
      order by 1 desc;
  elsif list.state = 'running' then
    open v_ids no scroll for
      select running.task_id from tasklib.running where running.task_id < v_before
      order by running.task_id desc;
  elsif list.state = 'pending' then
    open v_ids no scroll for
      (select ready.task_id from tasklib.ready where ready.task_id < v_before order by ready.task_id desc)
      union all
      (select delayed.task_id from tasklib.delayed where delayed.task_id < v_before
        order by delayed.task_id desc)
      union all
      (select waiting.task_id from tasklib.waiting where waiting.task_id < v_before
        order by waiting.task_id desc)
      union all
      (select parked.task_id from tasklib.parked where parked.task_id < v_before
        order by parked.task_id desc)
      order by 1 desc;
  else
    open v_ids no scroll for
      select task.id from tasklib.task where task.id < v_before order by task.id desc;
  end if;

  while v_left > 0 loop
    fetch v_ids into v_id;
    exit when not found;
    select tasks.* into v_task from tasklib.tasks
    where tasks.id = v_id
      and (v_all or tasks.enqueued_by = list.caller)
      and (list.state is null or tasks.state = list.state)
      and (list.name is null or tasks.name = list.name)
      and (list.queue is null or tasks.queue = list.queue)
      and (list.tags is null or tasks.tags @> list.tags);
    if found then
      v_left := v_left - 1;
      return next v_task;
    end if;
  end loop;
  close v_ids;
end;
$$;
comment on function tasklib.list(text, text, text, jsonb, int, uuid, tasklib.caller) is
  'The newest tasks that match all that is given, newest first, at most max_rows (1 to 1000). tags: an object whose pairs the task has. before: the last id of the page before. A role sees what it enqueued, tasklib_admin all. Fast by state, by name and by tags however many tasks are finished; queue alone, or a rare combination, walks from the newest on. Errors: TL001, TL002.';

create or replace function tasklib._check_list(state text, tags jsonb, max_rows int)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if state not in ('pending', 'running', 'completed', 'failed', 'cancelled') then
    perform tasklib._reject('TL001', 'unknown state ' || tasklib._shown(state), null,
      'The states are pending, running, completed, failed and cancelled.');
  elsif max_rows is null or max_rows not between 1 and 1000 then
    perform tasklib._reject('TL001', 'max_rows ' || tasklib._shown(max_rows::text) || ' is out of range',
      null, 'Pass 1 to 1000, and the last id of a page as before to get the next one.');
  end if;
  perform tasklib._check_object('tags', tags, 16384);
end;
$$;
comment on function tasklib._check_list(text, jsonb, int) is
  'Internal. Raises TL001 for arguments that list does not take.';
