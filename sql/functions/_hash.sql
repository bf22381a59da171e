-- Names, queues and keys become numbers without a table to look them up in, so that enqueue takes no
-- lock for a name it sees first. SHA-256 because it is stable over versions and machines, and because
-- nobody can choose a queue name that falls on another one's lane. These functions have no SET clause
-- and only immutable parts (a cast with doubled backslashes, as convert_to is not; chr(92), as a session
-- may read '\' in two ways), so that the planner inlines them: a call would cost far more than the hash.
create or replace function tasklib._hash(value text)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select ('x' || pg_catalog.encode(pg_catalog.substring(pg_catalog.sha256(
    pg_catalog.replace(value, pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2))
      ::pg_catalog.bytea), 1, 8), 'hex'))
    ::pg_catalog.bit(64)::pg_catalog.int8
$$;
comment on function tasklib._hash(text) is 'Internal. First 64 bits of the SHA-256 of a text.';

create or replace function tasklib._type_of(name text)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select tasklib._hash(name)
$$;
comment on function tasklib._type_of(text) is 'Internal. The number of a task name.';

-- 52 bits of the queue, then 12 bits in which a higher priority is a smaller number: the lanes of a
-- queue lie together, best first.
create or replace function tasklib._lane(queue text, priority int)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select (tasklib._hash(queue) & (-4096)::pg_catalog.int8) + 1024 - priority
$$;
comment on function tasklib._lane(text, int) is
  'Internal. The lane of a queue and a priority (-1000 to 1000). Priority 1024 gives the lower bound of the queue''s lanes, -3071 the upper one.';

create or replace function tasklib._key(queue text, key text)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select tasklib._hash(pg_catalog.length(queue)::pg_catalog.text || ':' || queue || key)
$$;
comment on function tasklib._key(text, text) is
  'Internal. The number of a concurrency key in a queue; null without a key. Two keys with one number would only wait for each other.';

create or replace function tasklib._tag_pair(key text, value jsonb)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select tasklib._hash(pg_catalog.length(key)::pg_catalog.text || ':' || key || value::text)
$$;
comment on function tasklib._tag_pair(text, jsonb) is 'Internal. The number of one tag, see table tag.';
