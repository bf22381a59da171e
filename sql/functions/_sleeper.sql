-- A worker that sleeps has to wake up, claim and commit before a lone task starts: that takes longer than
-- to enqueue it. So one that sleeps offers to take the next one (offer). The enqueue that finds the offer
-- leaves a note in handover, and when its transaction commits, a deferred trigger moves the task from
-- ready to running, in the worker's name, and sends all that claim would have returned.
--
-- It is a claim on the worker's behalf, with the same locks: of the worker's row, so that its registration
-- does not end in between, and of the row in ready, which it may not find any more. Whatever speaks against
-- it, the task stays ready, and workers are notified as ever. A notification that is not heard is no loss:
-- a worker whose connection breaks while it offers registers anew, and gives back what it does not know of.

-- The flag offer has in its upper bits who offers, and in its last 20 bits from which queues (_queue_bits).
-- An enqueue of another queue sees with one page read that the offer is not for it.

-- The first 40 bits of the id, which are random. Should two workers have the same ones, either will do.
create or replace function tasklib._worker_number(id uuid)
  returns bigint
  language sql
  immutable
as $$
  select ('x000000' || pg_catalog.left(pg_catalog.replace(id::pg_catalog.text, '-', ''), 10))
    ::pg_catalog.bit(64)::pg_catalog.int8
$$;
comment on function tasklib._worker_number(uuid) is
  'Internal. What the sequence offer holds of a worker id. Inlined as the functions of _hash.sql are, for the same reason.';

create or replace function tasklib._first_worker(number bigint)
  returns uuid
  language sql
  immutable
as $$
  select (pg_catalog.lpad(pg_catalog.to_hex(number), 10, '0') || '0000000000000000000000')::pg_catalog.uuid
$$;
comment on function tasklib._first_worker(bigint) is
  'Internal. The lower bound of worker ids with this number. Inlined.';

-- The setting is the transaction's: noting while the row is inserted, noted when it is, many when there is
-- another task, which may be the better one. Many notes would cost, too.
create or replace function tasklib._note_handover(
  task_id uuid,
  offer bigint,
  type bigint,
  queue text,
  key bigint,
  kwargs jsonb,
  headers jsonb
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  -- to ask in vain would cost every such enqueue more than half of what it takes
  if not exists (
    select from tasklib.worker
    where worker.id >= tasklib._first_worker(offer) and worker.id < tasklib._first_worker(offer + 1)
      and _note_handover.queue = any (worker.queues)
      and (worker.types is null or _note_handover.type = any (worker.types)))
  then
    return false;
  end if;
  -- A notification has 8000 bytes, and what is in quotes may take twice as many. Under other isolation
  -- levels a change of the worker's row, or of a page of an index, would be an error of the producer.
  if current_setting('tasklib.handover', true) <> ''
    or key is not null
    or octet_length(kwargs::text) + coalesce(octet_length(headers::text), 0) > 3000
    or current_setting('transaction_isolation') <> 'read committed'
  then
    perform set_config('tasklib.handover', 'many', true);
    return false;
  end if;
  perform set_config('tasklib.handover', 'noting', true);
  insert into tasklib.handover
  values (_note_handover.task_id, _note_handover.type, _note_handover.queue);
  perform set_config('tasklib.handover', 'noted', true);
  return true;
end;
$$;
comment on function tasklib._note_handover(uuid, bigint, bigint, text, bigint, jsonb, jsonb) is
  'Internal. Asks for a task to be handed over at the commit; false when it has to be claimed.';

create or replace function tasklib._hand_to_sleeper()
  returns trigger
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_offer bigint := 0;
  v_sent record;
begin
  -- Not under `set constraints … immediate`, when nobody knows how long the transaction stays open. One
  -- commit at a time, as two would find the same offer.
  if current_setting('tasklib.handover', true) = 'noted'
    and coalesce(left(current_query(), 64), '') !~* '^\s*set\s+constraints'
    and pg_try_advisory_xact_lock(tasklib._hash('tasklib.offer'))
  then
    v_offer := (select last_value >> 20 from tasklib.offer);
  end if;
  if v_offer > 0 then
    with sleeper as materialized (
      select worker.id, worker.channel, worker.asleep_until is not null as is_listed from tasklib.worker
      where worker.id >= tasklib._first_worker(v_offer) and worker.id < tasklib._first_worker(v_offer + 1)
        and worker.lost_at is null and not worker.restricted and worker.channel is not null
        -- its heartbeat was not long ago, and came to this server
        and worker.lease_until > v_now + worker.lease / 2 and right(worker.id::text, 8) = tasklib._server()
        and new.queue = any (worker.queues) and (worker.types is null or new.type = any (worker.types))
        and not exists (select from tasklib.queue as settings
          where settings.name = new.queue and (settings.paused or not settings.notify))
      limit 1 for key share of worker skip locked
    ),
    -- not what was cancelled, put off or moved since
    waits as materialized (
      select ready.ctid as spot, ready.lane, ready.pos, ready.type, sleeper.id as worker_id,
        sleeper.channel, sleeper.is_listed, body.id, body.name, body.queue, body.kwargs, body.headers,
        coalesce(body.timeout_seconds, type.timeout_seconds) as seconds,
        coalesce(body.max_retries, type.max_retries, 3) as retries
      from sleeper
        cross join tasklib.ready
        cross join lateral (select task.* from tasklib.task where task.ctid = ready.place
          and task.id = ready.task_id and task.queue = new.queue offset 0) as body
        left join lateral (select known.* from tasklib.task_type as known
          where known.type = ready.type offset 0) as type on true
      where ready.task_id = new.task_id
    ),
    gone as (
      delete from tasklib.ready where ready.ctid = any (array(select waits.spot from waits))
    ),
    started as (
      insert into tasklib.running (task_id, worker_id, started_at, deadline, lane, type, attempt)
      select waits.id, waits.worker_id, v_now, v_now + make_interval(secs => waits.seconds), waits.lane,
        waits.type, 1
      from waits
    )
    select waits.worker_id, waits.is_listed, waits.lane, waits.pos, setval('tasklib.offer', 0) into v_sent
    from waits, pg_notify(waits.channel, json_build_array(waits.worker_id, waits.id, 1, waits.name,
      waits.queue, waits.kwargs::text, 0, waits.retries, waits.seconds, null, waits.headers::text)::text);
  end if;
  delete from tasklib.handover where handover.task_id = new.task_id;
  if v_sent is null then
    perform tasklib._wake_some(new.queue, array[new.type], v_now);
  elsif v_sent.is_listed or v_sent.pos % 127 = 0 then
    perform tasklib._note_start(v_sent.worker_id, v_sent.lane);
  end if;
  return null;
end;
$$;
comment on function tasklib._hand_to_sleeper() is
  'Internal. Trigger of handover: moves a task from ready to running for the worker that offers to take one, and sends it there; else notifies sleeping workers.';

create or replace function tasklib._note_start(worker_id uuid, lane bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._note_lanes(array[lane]);
  update tasklib.worker set asleep_until = null
  where worker.ctid = any (array(
    select listed.ctid from tasklib.worker as listed
    where listed.id = _note_start.worker_id and listed.asleep_until is not null
    for no key update skip locked));
end;
$$;
comment on function tasklib._note_start(uuid, bigint) is
  'Internal. What a claim notes besides, now and then: that the lane has traffic, and that the worker is awake.';
