"""What every object and every function of the schema has in common, asked of the catalog."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sql.support import one, run
from tasklib import _sql

# Longer than a screen, and why that reads better than two halves.
LONG = {
    "enqueue": "the way of nearly every task, in as few calls and statements as it takes",
    "_insert_tasks": "one statement moves a batch: the columns of a task, named once each",
    "list": "one cursor for each way to walk the newest end of an index",
    "sweep": "one paragraph for each thing that should never happen",
}
# Small enough to be inlined into statements, which a pinned search_path would prevent.
INLINED = {
    *("_hash", "_type_of", "_lane", "_key", "_tag_pair", "_milliseconds", "_server"),
    *("_is_plain", "_last_gate", "_new_id", "_queue_bits", "_names", "_is_hushed"),
    *("_first_worker", "_worker_number"),
}


def functions(conn):
    return run(
        conn,
        "select proc.*, proc.oid::regprocedure::text as signature, lanname as language,"
        " pg_get_userbyid(proowner) as owner, obj_description(proc.oid, 'pg_proc') as comment"
        " from pg_proc as proc join pg_language on pg_language.oid = prolang"
        " where pronamespace = 'tasklib'::regnamespace order by proname",
    )


def files():
    return sorted(Path(_sql.folder()).rglob("*.sql"))


def sources():
    return [path for path in files() if "releases" not in path.parts]


def is_entry(function):
    return not function.proname.startswith("_")


def test_every_function_says_what_it_does(conn):
    for function in functions(conn):
        assert function.comment, function.signature
        assert function.comment.endswith("."), function.signature
        internal = function.comment.startswith("Internal. ")
        assert internal != is_entry(function), function.signature


def test_every_other_object_says_what_it_is(conn):
    bare = run(
        conn,
        "select relname from pg_class where relnamespace = 'tasklib'::regnamespace"
        " and relkind in ('r', 'v', 'S') and relname <> 'migration'"
        " and obj_description(oid, 'pg_class') is null union all"
        " select typname from pg_type join pg_class on pg_class.oid = typrelid"
        " where typnamespace = 'tasklib'::regnamespace and relkind = 'c'"
        " and obj_description(pg_type.oid, 'pg_type') is null"
        " and obj_description(pg_class.oid, 'pg_class') is null union all"
        " select indexrelid::regclass::text from pg_index"
        " join pg_class on pg_class.oid = indexrelid"
        " where relnamespace = 'tasklib'::regnamespace and not indisprimary"
        " and obj_description(indexrelid, 'pg_class') is null",
    )
    assert bare == []


def test_the_search_path_is_pinned(conn):
    for function in functions(conn):
        pinned = [s for s in function.proconfig or [] if s.startswith("search_path=")]
        if function.proname in INLINED:
            assert function.proconfig is None
            assert function.language == "sql"
            assert function.provolatile in "is" or function.proname == "_new_id"
        else:
            assert pinned == ["search_path=pg_catalog, pg_temp"], function.signature


def test_functions_without_a_pinned_path_are_inlined_so_that_they_are_not_planned_at_each_call(
    conn,
):
    for function in functions(conn):
        if function.proname not in INLINED:
            continue
        kinds = re.findall(r"[(,]\s*([^,()]+)", function.signature)
        columns = ", ".join(f"null::{kind} as c{n}" for n, kind in enumerate(kinds))
        arguments = ", ".join(f"c{n}" for n in range(len(kinds)))
        plan = run(
            conn,
            f"explain (verbose) select tasklib.{function.proname}({arguments})"
            f" from (select {columns} offset 0) as given",
        )
        assert not any(f"{function.proname}(" in line for (line,) in plan), plan


def test_entry_functions_run_as_the_owner_and_helpers_as_the_caller(conn):
    for function in functions(conn):
        if function.proname == "shard_of":
            assert not function.prosecdef
        elif function.proname == "_hand_to_sleeper":
            assert function.prosecdef  # the commit of any role calls it
        else:
            assert function.prosecdef == is_entry(function), function.signature


def test_only_the_owner_may_call_helpers(conn):
    callers = run(
        conn,
        "select proname from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))"
        " as acl where pronamespace = 'tasklib'::regnamespace and acl.grantee <> proowner"
        " and (proname like E'\\\\_%' or acl.grantee = 0)",
    )
    assert callers == []


def test_a_null_argument_is_answered_and_not_swallowed(conn):
    assert [f.proname for f in functions(conn) if f.proisstrict] == ["shard_of"]


def test_there_are_no_overloads(conn):
    names = [f.proname for f in functions(conn)]
    assert len(names) == len(set(names))


def test_entry_functions_have_named_arguments_and_no_out_arguments(conn):
    for function in filter(is_entry, functions(conn)):
        assert function.proargmodes is None, function.signature
        assert len(function.proargnames or []) == function.pronargs, function.signature


def test_types_of_arguments_are_plain(conn):
    kinds = {
        kind
        for function in filter(is_entry, functions(conn))
        for kind in re.findall(r"[(,]\s*([^,()]+)", function.signature)
    }
    assert {kind.removeprefix("tasklib.") for kind in kinds} <= {
        *("text", "jsonb", "integer", "double precision", "boolean", "uuid", "interval"),
        *("timestamp with time zone", "text[]", "uuid[]", "integer[]", "caller"),
    }


def test_one_trigger_no_enum_no_foreign_key_and_no_extension(conn):
    found = run(
        conn,
        "select typname from pg_type where typnamespace = 'tasklib'::regnamespace"
        " and typtype = 'e' union all"
        " select conname from pg_constraint where connamespace = 'tasklib'::regnamespace"
        " and contype = 'f' union all"
        " select tgname from pg_trigger join pg_class on pg_class.oid = tgrelid"
        " where relnamespace = 'tasklib'::regnamespace union all"
        " select extname from pg_extension where extname <> 'plpgsql'",
    )
    # nothing else in SQL is done at the commit
    assert [name for (name,) in found] == ["hand_over"]


def test_plpgsql_check_finds_nothing(conn):
    found = one(conn, "select count(*) from pg_available_extensions where name = 'plpgsql_check'")
    if not found:
        pytest.skip("plpgsql_check is not installed on this server")
    run(conn, "create extension plpgsql_check")
    problems = run(
        conn,
        "select proc.oid::regprocedure::text as function, lineno, level, sqlstate, message"
        " from pg_proc as proc join pg_language on pg_language.oid = prolang,"
        " lateral plpgsql_check_function_tb(proc.oid,"
        " relid => case when prorettype = 'trigger'::regtype then 'tasklib.handover'::regclass"
        " else 0 end, fatal_errors => false,"
        " extra_warnings => true, performance_warnings => false) as problem"
        " where pronamespace = 'tasklib'::regnamespace and lanname = 'plpgsql'"
        " and level <> 'warning extra' or false",
    )
    assert problems == []


def test_there_is_no_dynamic_sql():
    for path in sources():
        text = re.sub(r"--.*", "", path.read_text())
        if path.name == "offer.sql":  # of a name that is checked
            text = text.replace("execute format('listen %I', offer.channel);", "", 1)
        assert not re.search(r"\bexecute\s+(format|'|v_|\w+ *\|\|)", text, re.I), path.name
        assert "format(" not in text, path.name


def test_every_error_has_a_code_a_detail_and_a_hint():
    """Errors are raised in one place; everything else calls it."""
    for path in sources():
        if path.name == "_reject.sql":
            continue
        text = re.sub(r"--.*", "", path.read_text())
        assert "raise exception" not in text, path.name
        for code in re.findall(r"'(TL\d+)'", text):
            assert code in {f"TL{n:03}" for n in range(1, 15)}, path.name


def test_every_code_that_is_raised_is_documented_at_an_entry_function(conn):
    raised = {c for path in sources() for c in re.findall(r"'(TL\d{3})'", path.read_text())}
    documented = set()
    for function in filter(is_entry, functions(conn)):
        for first, last in re.findall(r"(TL\d{3})(?: to (TL\d{3}))?", function.comment):
            documented |= {f"TL{n:03}" for n in range(int(first[2:]), int((last or first)[2:]) + 1)}
    assert raised <= documented


def bodies():
    """Return how many lines the body of each function has."""
    function = r"function tasklib\.(\w+)\((?:(?!function tasklib).)*?as \$\$\n(.*?)\n *\$\$;"
    return {
        name: body.count("\n") + 1
        for path in sources()
        for name, body in re.findall(function, path.read_text(), re.S)
    }


def test_functions_fit_a_screen(conn):
    lines = bodies()
    assert set(lines) == {f.proname for f in functions(conn)}
    assert {name for name, count in lines.items() if count > 60} == set(LONG)


def test_lines_are_short_and_without_tabs():
    for path in sources():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.name}:{number}"
            assert "\t" not in line, where
            assert line == line.rstrip(), where
            # what people read, settings in a row and signatures are not broken into lines
            sentence = re.search(r"^\s*'.*'[;,)]*$|^(comment on|alter table)|'[^']{40,}|'$", line)
            signature = re.search(r"^ *tasklib\.\w+\([^)]*\),?$", line)
            assert len(line) <= 110 or sentence or signature, where


def test_one_public_verb_a_file():
    for path in sources():
        if path.parent.name != "functions" or path.name.startswith("_"):
            continue
        entry = re.compile(r"^create or replace function tasklib\.([a-z]\w*)\(", re.M)
        entries = entry.findall(path.read_text())
        assert path.stem in entries, path.name
        assert len(entries) <= 2, path.name
