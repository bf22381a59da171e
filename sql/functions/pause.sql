create or replace function tasklib.pause(queue text)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('queue', pause.queue, 128);
  insert into tasklib.queue (name, paused) values (pause.queue, true)
  on conflict on constraint queue_pkey do update set paused = true;
end;
$$;
comment on function tasklib.pause(text) is
  'Hand out no more tasks of a queue; those that run go on, and enqueue works. Errors: TL001, TL002.';

create or replace function tasklib.resume(queue text)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('queue', resume.queue, 128);
  update tasklib.queue set paused = false where queue.name = resume.queue;
  if (select last_value from tasklib.asleep_until) > extract(epoch from clock_timestamp()) * 1000 then
    perform pg_notify('tasklib', '');
  end if;
end;
$$;
comment on function tasklib.resume(text) is
  'End the pause of a queue. Errors: TL001, TL002.';
