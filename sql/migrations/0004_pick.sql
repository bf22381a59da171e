-- What a claim takes out of ready before it knows which of it may run.

create type tasklib.pick as (
  tasks tasklib.ready[],
  special boolean
);
comment on type tasklib.pick is
  'Rows taken out of ready, in the order in which they go. special: some of them have a concurrency key, or a unique key that holds until the start.';
