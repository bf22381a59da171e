-- Arguments that views mask.

-- Read for each task that a worker runs: give way to who holds it, and let migrate try again.
set local lock_timeout = '500ms';

alter table tasklib.task_type add column sensitive text[];
comment on column tasklib.task_type.sensitive is
  'Names of arguments that views and functions show as ***; claim hands them out as they are.';
