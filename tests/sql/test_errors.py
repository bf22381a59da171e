"""Bad input is answered with a documented SQLSTATE, a detail and a hint, and changes nothing."""

from __future__ import annotations

import json
from contextlib import nullcontext
from uuid import uuid4

import psycopg
import pytest

from sql.support import (
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    fingerprint,
    finish,
    one,
    refused,
    register,
    rows,
    run,
)

HUGE = "x" * 300_000
OVER_A_MEGABYTE = json.dumps({"a": "x" * 1_100_000})


REFUSED_BY_ENQUEUE = [
    ("TL001", {"name": ""}),
    ("TL001", {"name": None}),
    ("TL001", {"name": "a\nb"}),
    ("TL002", {"name": "x" * 129}),
    ("TL002", {"name": "é" * 65}),
    ("TL001", {"kwargs": None}),
    ("TL001", {"kwargs": "[]"}),
    ("TL001", {"kwargs": "null"}),
    ("TL001", {"kwargs": "1"}),
    ("TL002", {"kwargs": OVER_A_MEGABYTE}),
    ("TL002", {"kwargs": '{"a":' + "[" * 65 + "]" * 65 + "}"}),
    ("TL001", {"queue": ""}),
    ("TL002", {"queue": "q" * 129}),
    ("TL001", {"priority": 1001}),
    ("TL001", {"priority": -1001}),
    ("TL001", {"delay": "-1 second"}),
    ("TL001", {"delay": "6 years"}),
    ("TL001", {"scheduled_at": "infinity"}),
    ("TL001", {"scheduled_at": "-infinity"}),
    ("TL001", {"scheduled_at": "2100-01-01"}),
    ("TL001", {"delay": "1 second", "scheduled_at": "2030-01-01"}),
    ("TL001", {"max_retries": -1}),
    ("TL001", {"max_retries": 1001}),
    ("TL001", {"timeout_seconds": 0}),
    ("TL001", {"timeout_seconds": -1}),
    ("TL001", {"timeout_seconds": float("nan")}),
    ("TL001", {"timeout_seconds": float("inf")}),
    ("TL001", {"timeout_seconds": 604801}),
    ("TL001", {"tags": "[1]"}),
    ("TL002", {"tags": json.dumps({"a": "x" * 17_000})}),
    ("TL001", {"headers": '"text"'}),
    ("TL002", {"headers": json.dumps({"a": "x" * 17_000})}),
    ("TL001", {"unique_key": ""}),
    ("TL002", {"unique_key": "k" * 256}),
    ("TL001", {"concurrency_key": "\t"}),
    ("TL002", {"concurrency_key": "k" * 256}),
    ("TL001", {"unique_until": None}),
    ("TL001", {"unique_until": "later"}),
    ("TL001", {"backoff": "[]"}),
    ("TL001", {"backoff": '{"base": 1}'}),
    ("TL001", {"backoff": '{"base_seconds": "1"}'}),
    ("TL001", {"backoff": '{"base_seconds": -1}'}),
    ("TL001", {"backoff": '{"base_seconds": 1e400}'}),
    ("TL001", {"backoff": '{"base_seconds": 1e-400}'}),
    ("TL001", {"backoff": '{"multiplier": 101}'}),
    ("TL001", {"backoff": '{"jitter": 1.1}'}),
]


def test_enqueue_refuses(conn):
    for code, options in REFUSED_BY_ENQUEUE:
        before = fingerprint(conn)
        with refused(code, case=options):
            rows(conn, "enqueue", **{"name": "t", **options})
        assert fingerprint(conn) == before


JUST_ALLOWED = [
    {"name": "x" * 128},
    {"name": "é" * 64},
    {"name": "with spaces, and 'quotes' \"too\" %s %I $$"},
    {"queue": "q" * 128, "unique_key": "k" * 255, "concurrency_key": "k" * 255},
    {"kwargs": '{"a":' + "[" * 63 + "]" * 63 + "}"},
    {"kwargs": json.dumps({"a": "x" * 1_048_560})},
    {"priority": 1000, "max_retries": 1000, "timeout_seconds": 604800},
    {"priority": -1000, "max_retries": 0, "timeout_seconds": 0.001},
    {"delay": "5 years"},
    {"scheduled_at": "1970-01-01"},
    {"backoff": '{"base_seconds": 0, "multiplier": 100, "cap_seconds": 31536000, "jitter": 1}'},
    {"tags": "{}", "headers": "{}"},
]


def test_enqueue_takes_what_is_just_allowed(conn):
    for options in JUST_ALLOWED:
        register(conn)
        task_id = enqueue(conn, **{"name": "t", **options})

        assert one(conn, "select count(*) from tasklib.get(%s)", task_id) == 1


def of_bytes(size):
    """Return a JSON object that is so many bytes long as the database writes it."""
    return json.dumps({"a": "x" * (size - len('{"a": ""}'))})


def nested(levels):
    return '{"a":' + "[" * levels + "]" * levels + "}"


# Bytes that are just allowed, and one more; with and without what makes enqueue look twice.
LIMITS = [
    ({"kwargs": of_bytes(1_048_576)}, {"kwargs": of_bytes(1_048_577)}),
    (
        {"kwargs": of_bytes(1_048_576), "priority": 1},
        {"kwargs": of_bytes(1_048_577), "priority": 1},
    ),
    ({"tags": of_bytes(16_384)}, {"tags": of_bytes(16_385)}),
    ({"headers": of_bytes(16_384)}, {"headers": of_bytes(16_385)}),
    ({"kwargs": nested(64)}, {"kwargs": nested(65)}),
    ({"kwargs": nested(64), "priority": 1}, {"kwargs": nested(65), "priority": 1}),
]


def test_limits_are_exact(conn):
    for allowed, too_much in LIMITS:
        enqueue(conn, **allowed)
        enqueue_many(conn, read({"name": "t"} | allowed))
        with refused("TL002", case=too_much):
            enqueue(conn, **too_much)
        with refused("TL002", case=too_much):
            enqueue_many(conn, read({"name": "t"} | too_much))


def read(options):
    """Return options whose JSON texts are values."""
    return {k: json.loads(v) if v[:1] == "{" else v for k, v in options.items() if k != "priority"}


def test_limits_of_results_are_exact(conn):
    worker = register(conn)
    enqueue_many(conn, {"name": "t"}, {"name": "t"})
    one_call, batch = claim(conn, worker, 2)
    longest, too_long = (json.dumps("x" * (size - 2)) for size in (1_048_576, 1_048_577))
    for result, code in ((too_long, "TL002"), (longest, None)):
        outcome = [{"state": "completed", "result": json.loads(result)}]
        with refused(code) if code else nullcontext():
            complete(conn, worker, one_call, json.loads(result))
        with refused(code) if code else nullcontext():
            assert finish(conn, worker, [batch], outcome) == ["ok"]


REFUSED_BY_ENQUEUE_MANY = [
    ("TL001", 1),
    ("TL001", None),
    ("TL001", []),
    ("TL001", {}),
    ("TL001", {"name": 1}),
    ("TL001", {"name": None}),
    ("TL001", {"name": ""}),
    ("TL001", {"name": "t", "colour": "red"}),
    ("TL001", {"name": "t", "kwargs": [1]}),
    ("TL001", {"name": "t", "priority": "9"}),
    ("TL001", {"name": "t", "priority": 1.5}),
    ("TL001", {"name": "t", "priority": 99999999999}),
    ("TL001", {"name": "t", "max_retries": 1e30}),
    ("TL001", {"name": "t", "timeout_seconds": 1e-9}),
    ("TL001", {"name": "t", "timeout_seconds": 1e300}),
    ("TL001", {"name": "t", "delay": -5}),
    ("TL001", {"name": "t", "delay": 1e300}),
    ("TL001", {"name": "t", "delay": "soon"}),
    ("TL001", {"name": "t", "delay": True}),
    ("TL001", {"name": "t", "delay": "infinity"}),
    ("TL001", {"name": "t", "scheduled_at": "soon"}),
    ("TL001", {"name": "t", "scheduled_at": 5}),
    ("TL001", {"name": "t", "scheduled_at": "infinity"}),
    ("TL001", {"name": "t", "unique_until": "later"}),
    ("TL001", {"name": "t", "unique_key": ""}),
    ("TL001", {"name": "t", "backoff": {"base_seconds": True}}),
    ("TL002", {"name": "x" * 129}),
    ("TL002", {"name": "t", "kwargs": {"a": "x" * 1_100_000}}),
]


def test_enqueue_many_refuses_and_names_the_index(conn):
    for code, element in REFUSED_BY_ENQUEUE_MANY:
        before = fingerprint(conn)
        with refused(code, case=element) as error:
            enqueue_many(conn, {"name": "fine"}, element)
        assert "tasks[1]" in (error[0].diag.message_detail or "")
        assert fingerprint(conn) == before


def test_enqueue_many_refuses_numbers_that_no_column_holds(conn):
    before = fingerprint(conn)
    for number in ("1e400", "-1e400", "1e-400"):
        for option in ("timeout_seconds", "priority", "max_retries", "delay"):
            if (option, number) == ("delay", "1e-400"):
                continue  # as good as no delay
            tasks = f'[{{"name": "t", "{option}": {number}}}]'
            with refused("TL001", case=tasks):
                rows(conn, "enqueue_many", tasks=tasks)
    assert fingerprint(conn) == before


def test_a_star_is_a_name_like_any_other(conn):
    register(conn)
    worker = register(conn, "*")
    enqueue(conn, "other")
    task_id = enqueue(conn, "*")

    assert claim_one(conn, worker).id == task_id


NO_ARRAYS = [None, "{}", "1", "null", '"x"', '{"name": "t"}']


def test_enqueue_many_refuses_what_is_no_array(conn):
    for tasks in NO_ARRAYS:
        with refused("TL001", case=tasks):
            rows(conn, "enqueue_many", tasks=tasks)


def test_enqueue_many_takes_ten_thousand_and_no_more(conn):
    assert len(enqueue_many(conn, *[{"name": "t"}] * 10_000)) == 10_000
    with refused("TL002"):
        enqueue_many(conn, *[{"name": "t"}] * 10_001)


REFUSED_TASK_TYPES = [
    "1",
    "{}",
    "null",
    "[1]",
    "[null]",
    "[[]]",
    "[{}]",
    '[""]',
    '[{"name": "t", "colour": "red"}]',
    '[{"name": "t", "priority": 2000}]',
    '[{"name": "t", "priority": "1"}]',
    '[{"name": "t", "priority": 1.5}]',
    '[{"name": "t", "max_retries": -1}]',
    '[{"name": "t", "timeout_seconds": 0}]',
    '[{"name": "t", "timeout_seconds": 1e400}]',
    '[{"name": "t", "timeout_seconds": 1e-400}]',
    '[{"name": "t", "max_crashes": 0}]',
    '[{"name": "t", "backoff": {"multiplier": 1e-300}}]',
    '[{"name": "t", "queue": ""}]',
]


def test_register_worker_refuses_task_types(conn):
    for types in REFUSED_TASK_TYPES:
        register(conn)
        before = fingerprint(conn)
        with refused("TL001", case=types):
            rows(conn, "register_worker", task_types=types)
        assert fingerprint(conn) == before


REFUSED_LEASES = [None, "0", "-1 second", "999 ms", "25 hours", "1000 years"]


def test_register_worker_refuses_leases(conn):
    for lease in REFUSED_LEASES:
        with refused("TL001", case=lease):
            rows(conn, "register_worker", lease=lease)


REFUSED_BY_CALLS_OF_A_WORKER = [
    ("claim", {"queues": None}),
    ("claim", {"queues": []}),
    ("claim", {"queues": ["a", None]}),
    ("claim", {"queues": [["a"], ["b"]]}),
    ("claim", {"queues": ["q"] * 1001}),
    ("claim", {"queues": "[0:0]={q}"}),
    ("claim", {"max_tasks": None}),
    ("claim", {"max_tasks": 0}),
    ("claim", {"max_tasks": -1}),
    ("claim", {"max_tasks": 10_001}),
    ("idle", {"max_wait": None}),
    ("idle", {"max_wait": "-1 second"}),
    ("idle", {"max_wait": "2 hours"}),
    ("idle", {"queues": []}),
    ("finish", {"ids": None, "attempts": []}),
    ("finish", {"ids": [uuid4()], "attempts": []}),
    ("finish", {"ids": [uuid4()], "attempts": [None]}),
    ("finish", {"ids": [[uuid4()], [uuid4()]], "attempts": [1, 1]}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": "{}"}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": "null"}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": "[]"}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": "[1]"}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": "[{}]"}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": '[{"state": "done"}]'}),
    ("finish", {"ids": [uuid4()], "attempts": [1], "outcomes": '[{"state": "snoozed"}]'}),
    (
        "finish",
        {"ids": [uuid4()], "attempts": [1], "outcomes": '[{"state": "released", "x": 1}]'},
    ),
    (
        "finish",
        {
            "ids": [uuid4()],
            "attempts": [1],
            "outcomes": '[{"state": "failed", "cause": "bad luck"}]',
        },
    ),
    (
        "finish",
        {"ids": [uuid4()], "attempts": [1], "outcomes": '[{"state": "failed", "retry": 1}]'},
    ),
    ("release", {"ids": None, "attempts": None}),
    ("release", {"ids": [uuid4()], "attempts": [1, 2]}),
]


def test_calls_of_a_worker_refuse(conn):
    for function, arguments in REFUSED_BY_CALLS_OF_A_WORKER:
        worker = register(conn)
        before = fingerprint(conn)
        with refused("TL001", case=(function, arguments)):
            rows(conn, function, worker_id=worker, **arguments)
        assert fingerprint(conn) == before


def test_large_batches_and_results_are_refused(conn):
    worker = register(conn)
    enqueue(conn)
    held = claim_one(conn, worker)
    ids = [uuid4() for _ in range(10_001)]
    lease = {"id": held.id, "worker_id": worker, "attempt": 1}

    with refused("TL002"):
        rows(conn, "finish", worker_id=worker, ids=ids, attempts=[1] * 10_001)
    with refused("TL002"):
        rows(conn, "complete", **lease, result=OVER_A_MEGABYTE)
    outcome = json.dumps([{"state": "completed", "result": OVER_A_MEGABYTE}])
    with refused("TL002"):
        rows(conn, "finish", worker_id=worker, ids=[held.id], attempts=[1], outcomes=outcome)


REFUSED_BY_CALLS_OF_PEOPLE = [
    ("cancel", {"id": None}),
    ("retry", {"id": None}),
    ("reschedule", {"id": None}),
    ("purge", {"older_than": None}),
    ("purge", {"older_than": "-1 day"}),
    ("purge", {"older_than": "2000 years"}),
    ("purge", {"older_than": "1 day", "state": "running"}),
    ("purge", {"older_than": "1 day", "max_rows": 0}),
    ("purge", {"older_than": "1 day", "max_rows": None}),
    ("set_queue", {"name": None}),
    ("set_queue", {"name": "q", "retention": "-1 day"}),
    ("set_queue", {"name": "q", "max_crashes": 0}),
    ("set_queue", {"name": "q", "notify": None}),
    ("pause", {"queue": None}),
    ("pause", {"queue": ""}),
    ("resume", {"queue": "\x07"}),
    ("list", {"state": "done"}),
    ("list", {"max_rows": 0}),
    ("list", {"max_rows": 1001}),
    ("list", {"max_rows": None}),
    ("list", {"tags": "[]"}),
    ("tick", {"max_rows": None}),
    ("tick", {"max_rows": 0}),
    ("tick", {"max_rows": 2_000_000}),
]


def test_calls_of_people_refuse(conn):
    for function, arguments in REFUSED_BY_CALLS_OF_PEOPLE:
        before = fingerprint(conn)
        with refused("TL001", case=(function, arguments)):
            rows(conn, function, **arguments)
        assert fingerprint(conn) == before


REFUSED_BY_RESCHEDULE = [{"priority": 5000}, {"delay": "-1 s"}, {"queue": ""}]


def test_reschedule_refuses(conn):
    for arguments in REFUSED_BY_RESCHEDULE:
        task_id = enqueue(conn)
        before = fingerprint(conn)
        with refused("TL001"):
            rows(conn, "reschedule", id=task_id, **arguments)
        assert fingerprint(conn) == before


FIND_A_TASK = ["cancel", "retry", "reschedule"]


def test_an_unknown_task_is_not_found(conn):
    for function in FIND_A_TASK:
        with refused("TL003"):
            rows(conn, function, id=uuid4())


def test_an_unknown_cause_is_refused(conn):
    worker = register(conn)
    enqueue(conn)
    held = claim_one(conn, worker)
    for cause in ("bad luck", None):
        with refused("TL001"):
            rows(conn, "fail", id=held.id, worker_id=worker, attempt=1, cause=cause)


def test_an_error_quotes_a_long_value_short(conn):
    with pytest.raises(psycopg.Error) as caught:
        enqueue(conn, queue=HUGE)
    assert len(str(caught.value.diag.message_primary)) < 200


# Every entry function gets every value in every argument. The server itself answers 22xxx before a
# function is entered, when it cannot make the type of the argument of a text.
WEIRD = {
    "text": [None, "", " ", "x" * 129, HUGE, "a\x01b", "'; drop table x --", "%s", "é" * 200],
    "jsonb": [
        None,
        "null",
        "1",
        "[]",
        "{}",
        '"x"',
        "[null]",
        "[{}]",
        "[[1]]",
        '[{"name": 1e400}]',
        '{"a": {"b": 1e400}}',
        OVER_A_MEGABYTE,
        "[" * 2000 + "]" * 2000,
        '{"a": ' * 500 + "1" + "}" * 500,
    ],
    "integer": [None, 0, -1, -(2**31), 2**31 - 1],
    "double precision": [None, 0.0, -0.0, "NaN", "Infinity", "-Infinity", 1e308, 5e-324, -1],
    "interval": [None, "0", "-1 second", "178000000 years", "-178000000 years", "1 microsecond"],
    "timestamp with time zone": [None, "infinity", "-infinity", "294276-01-01", "4713-01-01 BC"],
    "uuid": [None, "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "boolean": [None, True, False],
    "text[]": [None, [], [None], [""], ["x" * 1000] * 500, [["a", "b"], ["c", "d"]]],
    "uuid[]": [None, [], [None], ["00000000-0000-0000-0000-000000000000"] * 2],
    "integer[]": [None, [], [None], [2**31 - 1], [[1], [2]]],
}
USUAL = {
    "kwargs": "{}",
    "max_retries": None,
    "name": "fuzz",
    "queues": ["default"],
    "queue": "default",
    "unique_until": "finished",
    "lease": "60 seconds",
    "max_tasks": 1,
    "max_wait": "1 second",
    "max_rows": 10,
    "older_than": "10 years",
    "cause": "error",
    "retry": True,
    "notify": True,
    "crashed": False,
    "delay": None,
    "fraction": 0.5,
    "tasks": "[]",
    "ids": [],
    "attempts": [],
    "attempt": 1,
    "role": "public",
    "action": "enqueue",
    "strict": False,
}
DOCUMENTED = {f"TL{n:03}" for n in range(1, 15)}
FUNCTIONS = (
    *(
        "enqueue",
        "enqueue_many",
        "register_worker",
        "heartbeat",
        "cancel_requests",
        "claim",
        "idle",
    ),
    *("complete", "fail", "finish", "release", "snooze", "set_progress", "cancel", "retry"),
    *("reschedule", "get", "list", "purge", "set_queue", "pause", "resume", "deregister_worker"),
    *("tick", "sweep", "shard_of", "version"),
    *("set_rule", "drop_rule", "set_limit", "drop_limit", "set_strict"),
)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_of_every_function_survives_odd_values(conn, function):
    worker, task_id = register(conn), enqueue(conn, concurrency_key="k", unique_key="k")
    enqueue(conn, "later", delay="1 hour")
    held = claim_one(conn, worker)
    signature = run(
        conn,
        "select name, type::regtype::text from pg_proc, unnest(proargnames, proargtypes::oid[])"
        " as argument (name, type) where pronamespace = 'tasklib'::regnamespace and proname = %s"
        " and type <> 'tasklib.caller'::regtype",
        function,
    )
    usual = {**USUAL, "worker_id": worker, "id": held.id}
    tried = 0
    for name, kind in signature:
        for value in WEIRD[kind]:
            given = {n: usual.get(n) for n, _ in signature} | {name: value}
            if function == "fail":
                given["retry_in"] = given["retry_in"] if name == "retry_in" else None
            casts = ", ".join(f"{n} => %({n})s::{t}" for n, t in signature)
            before = fingerprint(conn)
            error = attempt(conn, f"select * from tasklib.{function}({casts})", given)
            if error:
                assert entered(error) <= DOCUMENTED, f"{name} = {str(value)[:60]}: {error}"
                assert fingerprint(conn) == before
            tried += 1
    assert tried or not signature
    assert call(conn, "cancel", id=task_id) == "requested"


def attempt(conn, text, arguments):
    """Run a call and undo it; return its error."""
    run(conn, "begin")
    try:
        run(conn, text, **arguments)
    except psycopg.Error as error:
        return error
    finally:
        run(conn, "rollback")
    return None


def entered(error):
    """Return the SQLSTATE unless the server refused a value before the function was entered."""
    inside = "PL/pgSQL function" in (error.diag.context or "")
    return {error.sqlstate} if inside or not error.sqlstate.startswith("22") else set()


REFUSED_BY_THE_SERVER = [
    ("22P05", r"""select tasklib.enqueue('t', '{"a": "\u0000"}')"""),
    ("22P02", r"""select tasklib.enqueue('t', '{"a": "\ud800"}')"""),
    ("22P02", "select tasklib.enqueue('t', '{oops')"),
    ("22P02", "select tasklib.enqueue('t', priority => 'high')"),
    ("22003", "select tasklib.enqueue('t', priority => '99999999999')"),
    ("22P02", "select tasklib.cancel('7')"),
    ("22007", "select tasklib.enqueue('t', delay => 'soon')"),
    ("22008", "select tasklib.enqueue('t', scheduled_at => '999999-01-01')"),
    ("22015", "select tasklib.enqueue('t', delay => '1000000000000 years')"),
    ("22003", "select tasklib.enqueue('t', priority => '2147483648')"),
    ("2202E", "select tasklib.claim(null, '[1:0]={}')"),
    ("54001", f"select tasklib.enqueue('t', '{'[' * 100_000}')"),
]


def test_what_the_server_itself_refuses(conn):
    for code, text in REFUSED_BY_THE_SERVER:
        with refused(code):
            run(conn, text)
