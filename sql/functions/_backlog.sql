-- How many unfinished tasks each role has: counted from block to block of the narrow tables, some blocks
-- at each tick, only while a limit asks for it. So it costs the same for any backlog, and is as old as
-- the backlog is long: a round is one tick for each 10,000 tasks or so. What moves to another table
-- meanwhile may be counted twice, or not.
create or replace function tasklib._count_backlog(max_rows int)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_round tasklib.backlog_round;
  v_left bigint := greatest(1, max_rows / 10);
  v_blocks bigint;
begin
  if not exists (select from tasklib.role_limit where role_limit.max_backlog is not null) then
    return;
  end if;
  select backlog_round.* into v_round from tasklib.backlog_round;
  while v_round.place <= 5 and v_left > 0 loop
    v_blocks := pg_relation_size((array['tasklib.ready', 'tasklib.delayed', 'tasklib.waiting',
      'tasklib.parked', 'tasklib.running'])[v_round.place]) / current_setting('block_size')::bigint;
    v_blocks := least(v_left, v_blocks - v_round.block);
    if v_blocks > 0 then
      perform tasklib._count_blocks(v_round.place, v_round.block, v_round.block + v_blocks);
      v_round.block := v_round.block + v_blocks;
      v_left := v_left - v_blocks;
    else
      v_round.place := v_round.place + 1;
      v_round.block := 0;
    end if;
  end loop;
  if v_round.place > 5 then
    delete from tasklib.backlog where backlog.counting = 0;
    update tasklib.backlog set counted = backlog.counting, counting = 0;
    v_round.place := 1;
  end if;
  update tasklib.backlog_round set place = v_round.place, block = v_round.block
  where (backlog_round.place, backlog_round.block) <> (v_round.place, v_round.block);
end;
$$;
comment on function tasklib._count_backlog(int) is
  'Internal. Goes on counting unfinished tasks by role, a tenth of max_rows blocks.';

create or replace function tasklib._count_blocks(place int, first_block bigint, end_block bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from tid := ('(' || first_block || ',0)')::tid;
  v_to tid := ('(' || end_block || ',0)')::tid;
begin
  insert into tasklib.backlog (role, counting)
  select body.enqueued_by, count(*)
  from (
      select ready.task_id from tasklib.ready
      where _count_blocks.place = 1 and ready.ctid >= v_from and ready.ctid < v_to
      union all
      select delayed.task_id from tasklib.delayed
      where _count_blocks.place = 2 and delayed.ctid >= v_from and delayed.ctid < v_to
      union all
      select waiting.task_id from tasklib.waiting
      where _count_blocks.place = 3 and waiting.ctid >= v_from and waiting.ctid < v_to
      union all
      select parked.task_id from tasklib.parked
      where _count_blocks.place = 4 and parked.ctid >= v_from and parked.ctid < v_to
      union all
      select running.task_id from tasklib.running
      where _count_blocks.place = 5 and running.ctid >= v_from and running.ctid < v_to
    ) as part
    cross join lateral (
      select task.enqueued_by from tasklib.task where task.id = part.task_id offset 0
    ) as body
  group by body.enqueued_by
  on conflict on constraint backlog_pkey do update set counting = backlog.counting + excluded.counting;
end;
$$;
comment on function tasklib._count_blocks(int, bigint, bigint) is
  'Internal. Adds the tasks in some blocks of one table to the counting.';
