-- What an application would have: a table of documents, and a trigger that enqueues a task for each.

drop schema if exists tasklib_demo cascade;
create schema tasklib_demo;

create table tasklib_demo.document (
  id bigint generated always as identity primary key,
  path text not null unique,
  task_id uuid not null
);
comment on table tasklib_demo.document is 'Files to be indexed, each with the task that does it.';

create table tasklib_demo.document_index (
  document_id bigint primary key references tasklib_demo.document,
  sha256 text not null,
  bytes bigint not null,
  words bigint not null,
  indexed_by integer not null,
  runs integer not null default 1
);
comment on table tasklib_demo.document_index is 'What the workers found in each file.';

create function tasklib_demo.enqueue_document()
  returns trigger
  language plpgsql
as $$
begin
  new.task_id := tasklib.enqueue(
    'demo.index_document',
    jsonb_build_object('document_id', new.id, 'path', new.path),
    queue => 'tasklib_demo'
  );
  return new;
end;
$$;
comment on function tasklib_demo.enqueue_document() is
  'Enqueue the task in the transaction that inserts the document: both exist, or neither.';

create trigger document_enqueue
  before insert on tasklib_demo.document
  for each row execute function tasklib_demo.enqueue_document();
