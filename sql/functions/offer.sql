create or replace function tasklib.offer(
  worker_id uuid,
  queues text[] default '{default}',
  channel text default null,
  caller tasklib.caller default current_user
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_worker tasklib.worker;
  v_number bigint := tasklib._worker_number(offer.worker_id);
  v_queues bigint;
begin
  perform tasklib._check_queues(offer.queues);
  if channel !~ '^[a-z][a-z0-9_]{31,62}$' then
    perform tasklib._reject('TL001', 'channel ' || tasklib._shown(offer.channel)
      || ' is not 32 to 63 small letters, digits and underscores', null,
      'Arguments of tasks are sent there: make a name for each connection that nobody can guess.');
  end if;
  v_worker := tasklib._registration(offer.worker_id, offer.caller);
  if (v_worker.channel, v_worker.queues) is distinct from (offer.channel, offer.queues) then
    update tasklib.worker set channel = offer.channel, queues = offer.queues
    where worker.id = offer.worker_id and worker.lost_at is null;
    if channel is not null then
      -- listen takes no parameter, and a name in the text of a statement is seen by who watches sessions
      execute format('listen %I', offer.channel);
    end if;
  end if;
  -- what rules have to be asked for is not handed over, nor what is paused or not notified of
  if channel is not null and not v_worker.restricted then
    v_queues := (
      select bit_or(tasklib._queue_bits(taken.queue, v_number)) from unnest(offer.queues) as taken (queue)
      where not exists (select from tasklib.queue as settings
        where settings.name = taken.queue and (settings.paused or not settings.notify)));
  end if;
  if v_queues is not null then
    perform setval('tasklib.offer', v_number << 20 | v_queues);
  else
    perform tasklib._withdraw_offer(offer.worker_id);
  end if;
end;
$$;
comment on function tasklib.offer(uuid, text[], text, tasklib.caller) is
  'Offer to take the next lone task: the transaction that enqueues it may hand it over when it commits, as if the worker had claimed it, and says so on channel, to which this session listens from now on. Make a name for this connection alone: 32 to 63 small letters, digits and underscores that nobody can guess, for arguments are sent there. Call it before going to sleep (after idle, before the last claim); what the worker is handed, or claims, ends the offer, and so does channel => null. A worker that offered counts as awake as a whole when a claim brings all that it asked for, until it calls idle again. The payload is a JSON array: worker_id, id, attempt, name, queue, kwargs as text, retry_count, max_retries, timeout_seconds, tags as text, headers as text; later versions may add to it. When the connection breaks a task may have been handed over unheard: claim under a new registration, and end the old one. Errors: TL001, TL007, TL011.';

create or replace function tasklib._withdraw_offer(worker_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if (select last_value >> 20 from tasklib.offer) = tasklib._worker_number(worker_id) then
    perform setval('tasklib.offer', 0);
  end if;
end;
$$;
comment on function tasklib._withdraw_offer(uuid) is
  'Internal. The worker takes no task by itself any more; the offer of another one stands.';
