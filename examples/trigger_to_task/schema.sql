create table document (
  id bigint generated always as identity primary key,
  body text not null,
  words int
);

create function enqueue_count_words()
  returns trigger
  language plpgsql
as $$
begin
  perform tasklib.enqueue(
    'tasks.count_words',
    jsonb_build_object('document_id', new.id),
    -- Free again when the task starts: what is written while it runs gets a run of its own.
    unique_key => 'document ' || new.id,
    unique_until => 'started'
  );
  return null;
end
$$;

create trigger document_count_words
  after insert or update of body on document
  for each row execute function enqueue_count_words();
