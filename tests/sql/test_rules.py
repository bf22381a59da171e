"""What a role may enqueue and claim, by queue and by name; what it may ask for at most."""

from __future__ import annotations

from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from sql.support import (
    acting_as,
    blocked,
    buffers,
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    fail,
    fingerprint,
    in_background,
    logged_in_as,
    one,
    refused,
    register,
    rows,
    run,
    task,
    tick,
    transaction,
)


def rule(conn, role, action, queue="*", name="*"):
    call(conn, "set_rule", role=role, action=action, queue=queue, name=name)


@pytest.fixture
def producer(person):
    return person("tasklib_producer")


@pytest.fixture
def worker_role(person):
    return person("tasklib_worker")


# --- who may enqueue what


def test_without_a_rule_a_producer_enqueues_anything_anywhere(conn, producer):
    with acting_as(conn, producer):
        enqueue(conn, "any.name", queue="any queue")


def test_a_role_with_a_rule_enqueues_what_it_says_and_nothing_else(conn, producer):
    rule(conn, producer, "enqueue", "mail", "mail.*")
    rule(conn, producer, "enqueue", "reports*", "report.build")
    with acting_as(conn, producer):
        for queue, name in [
            *(("mail", "mail.send"), ("mail", "mail."), ("reports", "report.build")),
            ("reports-eu", "report.build"),
        ]:
            enqueue(conn, name, queue=queue)
            enqueue_many(conn, {"name": name, "queue": queue})
            enqueue(conn, name, queue=queue, delay="1 hour", tags={"a": 1}, unique_key="k" + name)
        for queue, name in [
            *(("default", "mail.send"), ("mail", "mai"), ("mail", "report.build")),
            *(("mail2", "mail.send"), ("report", "report.build"), ("reports", "report.builds")),
            *((None, "mail.send"), ("MAIL", "mail.send"), ("*", "mail.send"), ("mail", "*")),
        ]:
            for options in ({}, {"delay": "1 hour"}, {"unique_key": "k"}, {"tags": {"a": 1}}):
                with refused("TL012", "may not enqueue", case=(queue, name, options)):
                    enqueue(conn, name, queue=queue, **options)
            with refused("TL012", case=(queue, name)):
                enqueue_many(conn, {"name": name, "queue": queue})


def test_a_pattern_is_a_beginning_and_not_an_expression(conn, producer):
    rule(conn, producer, "enqueue", "a.c", "100%_[x]*")
    with acting_as(conn, producer):
        enqueue(conn, "100%_[x]y", queue="a.c")
        for queue, name in [("abc", "100%_[x]y"), ("a.c", "100ab[x]"), ("a.c", "100%_x")]:
            with refused("TL012"):
                enqueue(conn, name, queue=queue)


def test_a_name_without_a_star_is_that_name_alone(conn, producer):
    rule(conn, producer, "enqueue", "mail", "send")
    with acting_as(conn, producer):
        enqueue(conn, "send", queue="mail")
        for queue, name in [("mail", "sender"), ("mails", "send")]:
            with refused("TL012"):
                enqueue(conn, name, queue=queue)


def test_where_a_role_may_claim_it_may_not_enqueue_for_that(conn, producer):
    rule(conn, producer, "enqueue", "mail")
    rule(conn, producer, "claim", "reports")
    with acting_as(conn, producer):
        enqueue(conn, queue="mail")
        with refused("TL012"):
            enqueue(conn, queue="reports")


def test_a_refusal_names_role_queue_and_name_and_the_call_that_allows_it(conn, producer):
    rule(conn, producer, "enqueue", "mail")
    before = fingerprint(conn)
    with acting_as(conn, producer), refused("TL012") as error:
        enqueue(conn, "it's", queue="re'ports", kwargs={"secret": "hush"})
    diag = error[0].diag
    assert diag.message_primary == f'role "{producer}" may not enqueue "it\'s" in queue "re\'ports"'
    assert fingerprint(conn) == before
    assert diag.message_hint
    (text,) = [part for part in diag.message_hint.split(": ", 1) if part.startswith("select ")]
    run(conn, text)
    with acting_as(conn, producer):
        enqueue(conn, "it's", queue="re'ports")


def test_a_batch_names_the_index_of_the_first_task_that_is_refused(conn, producer):
    rule(conn, producer, "enqueue", "mail")
    fine, wrong = {"name": "t", "queue": "mail"}, {"name": "t", "queue": "other"}
    with acting_as(conn, producer), refused("TL012") as error:
        enqueue_many(conn, fine, fine, wrong, fine, wrong)
    assert "tasks[2]" in (error[0].diag.message_detail or "")
    assert one(conn, "select count(*) from tasklib.task") == 0


def test_rules_of_groups_add_up(conn, person):
    web, reports = person(), person()
    member = person("tasklib_producer", web, reports)
    rule(conn, web, "enqueue", "web")
    rule(conn, reports, "enqueue", "reports")
    with acting_as(conn, member):
        enqueue(conn, queue="web")
        enqueue(conn, queue="reports")
        with refused("TL012"):
            enqueue(conn, queue="other")


def test_a_rule_for_public_covers_every_role(conn, person):
    covered, special = person("tasklib_producer"), person("tasklib_producer")
    rule(conn, "public", "enqueue", "open")
    rule(conn, special, "enqueue", "special")
    with acting_as(conn, covered):
        enqueue(conn, queue="open")
        with refused("TL012"):
            enqueue(conn, queue="special")
    with acting_as(conn, special):
        enqueue(conn, queue="open")
        enqueue(conn, queue="special")


def test_rules_of_others_and_of_the_other_action_bind_nobody(conn, person, producer):
    rule(conn, person(), "enqueue", "mail")
    rule(conn, producer, "claim", "mail")
    with acting_as(conn, producer):
        enqueue(conn, queue="anything")


def test_admins_the_owner_and_superusers_are_not_bound(conn, person):
    rule(conn, "public", "enqueue", "mail")
    rule(conn, "public", "claim", "mail")
    call(conn, "set_limit", role="public", max_priority=0, max_backlog=0)
    call(conn, "set_strict", strict=True)
    for role in (
        person("tasklib_producer", "tasklib_worker", "tasklib_admin"),
        person("tasklib_producer", "tasklib_worker", options="superuser"),
    ):
        with acting_as(conn, role):
            enqueue(conn, queue="other", priority=5)
            worker = register(conn)
            complete(conn, worker, claim_one(conn, worker, ["other"]))
    enqueue(conn, queue="other")


def test_in_a_strict_database_a_role_without_a_rule_may_do_nothing(conn, person):
    role = person("tasklib_producer", "tasklib_worker")
    with acting_as(conn, role):
        early = register(conn)
    call(conn, "set_strict", strict=True)
    with acting_as(conn, role):
        for wrong in (
            lambda: enqueue(conn),
            lambda: enqueue_many(conn, {"name": "t"}),
            lambda: register(conn),
            lambda: register(conn, "t"),
            lambda: claim(conn, early),
            lambda: rows(conn, "idle", worker_id=early),
        ):
            with refused("TL012"):
                wrong()
    rule(conn, role, "enqueue", "mail")
    rule(conn, role, "claim", "mail")
    with acting_as(conn, role):
        enqueue(conn, queue="mail")
        claim_one(conn, register(conn), ["mail"])
    call(conn, "drop_rule", role=role)
    call(conn, "set_strict", strict=False)
    with acting_as(conn, role):
        enqueue(conn)
        claim_one(conn, early)


def test_a_membership_that_ends_takes_its_rules_along(conn, person):
    group = person()
    member = person("tasklib_producer", "tasklib_worker", group)
    call(conn, "set_strict", strict=True)
    rule(conn, group, "enqueue", "mail")
    rule(conn, group, "claim", "mail")
    with acting_as(conn, member):
        worker = register(conn)
        enqueue(conn, queue="mail")
        claim(conn, worker, queues=["mail"])
    run(conn, f"revoke {group} from {member}")
    with acting_as(conn, member):
        with refused("TL012"):
            enqueue(conn, queue="mail")
        with refused("TL012"):
            claim(conn, worker, queues=["mail"])


def test_setting_another_role_is_no_way_around(conn, person):
    """Every producer is a member of tasklib_producer, and so can become it."""
    free = person("tasklib_producer")
    login = person("tasklib_producer", "tasklib_worker", free)
    rule(conn, login, "enqueue", "mail")
    rule(conn, login, "claim", "mail")
    with logged_in_as(conn, login):
        worker = register(conn, "t")
        for role in ("tasklib_producer", free):
            with acting_as(conn, role):
                enqueue(conn, queue="mail")
                with refused("TL012"):
                    enqueue(conn, queue="other")
        with acting_as(conn, "tasklib_worker"), refused("TL012"):
            claim(conn, register(conn, "t"), queues=["other"])
        with refused("TL012"):
            claim(conn, worker, queues=["other"])


def test_the_groups_themselves_are_free_while_nobody_made_a_rule_only(conn, person):
    with acting_as(conn, "tasklib_producer"):
        enqueue(conn)
    rule(conn, person(), "enqueue", "mail")
    with acting_as(conn, "tasklib_producer"), refused("TL012"):
        enqueue(conn)


# --- other ways into a queue


def test_the_default_queue_of_a_name_counts(conn, producer):
    register(conn, {"name": "t", "queue": "reports"})
    rule(conn, producer, "enqueue", "mail")
    rule(conn, producer, "enqueue", "default")
    with acting_as(conn, producer):
        for add in (
            lambda: enqueue(conn, "t"),
            lambda: enqueue(conn, "t", delay="1 h"),
            lambda: enqueue_many(conn, {"name": "t"}),
        ):
            with refused("TL012", 'in queue "reports"'):
                add()
        enqueue(conn, "t", queue="mail")


@pytest.mark.parametrize("options", [{}, {"delay": "1 hour"}])
def test_a_name_registered_later_takes_a_task_nowhere_its_producer_may_not_go(
    conn, producer, options
):
    rule(conn, producer, "enqueue", "default")
    free = enqueue(conn, "new", **options)
    with acting_as(conn, producer):
        bound = enqueue(conn, "new", **options)
    register(conn, {"name": "new", "queue": "reports", "priority": 7})
    run(conn, "update tasklib.delayed set run_at = clock_timestamp() - interval '1 second'")
    tick(conn)
    assert task(conn, free).queue == "reports"
    assert (task(conn, bound).queue, task(conn, bound).priority) == ("default", 7)


def test_reschedule_and_retry_need_the_right_to_enqueue_there(conn, producer):
    with acting_as(conn, producer):
        ids = [enqueue(conn, "t", queue="mail") for _ in range(3)]
        call(conn, "cancel", id=ids[0])
    rule(conn, producer, "enqueue", "mail", "t")
    with acting_as(conn, producer):
        with refused("TL012", 'may not enqueue "t" in queue "other"'):
            call(conn, "reschedule", id=ids[1], queue="other")
        call(conn, "reschedule", id=ids[1], delay="1 hour", queue="mail")
        call(conn, "retry", id=ids[0])
        call(conn, "cancel", id=ids[0])
    call(conn, "drop_rule", role=producer)
    rule(conn, producer, "enqueue", "other")
    with acting_as(conn, producer):
        for function, arguments in {
            "retry": {"id": ids[0]},
            "reschedule": {"id": ids[1], "delay": "1 minute"},
        }.items():
            with refused("TL012", case=function):
                call(conn, function, **arguments)
        assert call(conn, "reschedule", id=ids[1], queue="other") == "pending"
        assert call(conn, "cancel", id=ids[2]) == "cancelled"


def test_an_admin_steers_tasks_whatever_their_producer_may(conn, person, producer):
    with acting_as(conn, producer):
        task_id = enqueue(conn, queue="mail")
    rule(conn, "public", "enqueue", "nowhere")
    with acting_as(conn, person("tasklib_admin")):
        call(conn, "reschedule", id=task_id, queue="other", priority=900)
        call(conn, "cancel", id=task_id)
        assert call(conn, "retry", id=task_id) == "pending"


# --- who may claim what


def test_a_worker_claims_from_the_queues_of_its_rules_only(conn, worker_role):
    rule(conn, worker_role, "claim", "mail*")
    enqueue(conn, queue="mail")
    enqueue(conn, queue="reports")
    with acting_as(conn, worker_role):
        worker = register(conn)
        for queues in (["reports"], ["mail", "reports"], ["default"]):
            with refused("TL012", "may not claim"):
                claim(conn, worker, 10, queues)
            with refused("TL012"):
                rows(conn, "idle", worker_id=worker, queues=queues)
            with refused("TL012"):
                rows(conn, "idle", worker_id=worker, queues=queues, for_long=True)
        assert len(claim(conn, worker, 10, ["mail", "mail-eu"])) == 1
        rows(conn, "idle", worker_id=worker, queues=["mail"])


def test_a_worker_registers_only_names_that_it_may_claim(conn, worker_role):
    rule(conn, worker_role, "claim", "mail", "mail.*")
    rule(conn, worker_role, "claim", "misc", "once")
    before = fingerprint(conn)
    with acting_as(conn, worker_role):
        with refused("TL012", 'may not claim "report.build"'):
            register(conn, "mail.send", "report.build")
        with refused("TL012", 'may not claim "report.build"'):
            register(conn, {"name": "report.build", "max_retries": 0})
        with refused("TL012", "any name"):
            register(conn)
    assert fingerprint(conn) == before
    with acting_as(conn, worker_role):
        register(conn, "mail.send", {"name": "once", "priority": 1})


def test_each_name_counts_in_each_queue(conn, worker_role):
    rule(conn, worker_role, "claim", "mail", "mail.*")
    rule(conn, worker_role, "claim", "misc", "once")
    with acting_as(conn, worker_role):
        both = register(conn, "mail.send", "once")
        mail = register(conn, "mail.send", "mail.receive")
        claim(conn, mail, queues=["mail"])
        with refused("TL012", 'may not claim "once" in queue "mail"'):
            claim(conn, both, queues=["mail"])
        with refused("TL012", 'may not claim "mail.send" in queue "misc"'):
            claim(conn, both, queues=["misc"])
    rule(conn, worker_role, "claim", "mail", "once")
    with acting_as(conn, worker_role):
        claim(conn, both, queues=["mail"])


def test_a_worker_sends_tasks_to_no_queue_from_which_it_may_not_take_them(conn, worker_role):
    register(conn, {"name": "mail.send", "queue": "mail", "priority": 3})
    rule(conn, worker_role, "claim", "mail", "mail.*")
    rule(conn, worker_role, "claim", "misc", "once")
    before = fingerprint(conn)
    with acting_as(conn, worker_role):
        for queue in ("reports", "misc"):
            with refused("TL012", f'in queue "{queue}"'):
                register(conn, {"name": "mail.send", "queue": queue})
        with refused("TL012"):
            register(conn, {"name": "other", "max_retries": 0})
    assert fingerprint(conn) == before
    with acting_as(conn, worker_role):
        register(conn, {"name": "mail.send", "queue": "mail", "priority": 9})


def test_a_rule_binds_workers_that_run(conn, worker_role):
    enqueue(conn, queue="reports")
    with acting_as(conn, worker_role):
        worker = register(conn)
        claim_one(conn, worker, ["reports"])
    rule(conn, worker_role, "claim", "mail")
    with acting_as(conn, worker_role), refused("TL012"):
        claim(conn, worker, queues=["reports"])
    call(conn, "drop_rule", role=worker_role)
    with acting_as(conn, worker_role):
        claim(conn, worker, queues=["reports"])


def test_what_a_worker_holds_it_may_end_whatever_rules_came(conn, worker_role):
    ids = [enqueue(conn, queue="reports") for _ in range(2)]
    with acting_as(conn, worker_role):
        worker = register(conn)
        first, second = claim(conn, worker, 2, ["reports"])
    rule(conn, worker_role, "claim", "mail")
    with acting_as(conn, worker_role):
        rows(conn, "heartbeat", worker_id=worker)
        complete(conn, worker, first)
        fail(conn, worker, second)
    assert [task(conn, i).state for i in ids] == ["completed", "failed"]


def test_a_worker_that_registers_while_the_first_rule_is_made_is_bound(
    conn, make_conn, worker_role
):
    admin, session = make_conn(), make_conn()
    run(session, f"set role {worker_role}")
    with transaction(admin):
        rule(admin, worker_role, "claim", "mail")
        with in_background(lambda: register(session, "t")) as registering:
            blocked(conn, session)
            run(admin, "commit")
            worker = registering.result(10)
            run(admin, "begin")
    with refused("TL012"):
        claim(session, worker)


def test_a_worker_that_registered_before_the_first_rule_was_made_is_bound(
    conn, make_conn, worker_role
):
    admin, session = make_conn(), make_conn()
    run(session, f"set role {worker_role}")
    with transaction(session):
        worker = register(session, "t")
        with in_background(lambda: rule(admin, worker_role, "claim", "mail")) as setting:
            blocked(conn, admin)
            run(session, "commit")
            setting.result(10)
            run(session, "begin")
    with refused("TL012"):
        claim(session, worker)


def test_two_changes_of_rules_at_once_do_not_forget_each_other(conn, make_conn, producer):
    """One drops the last rule that there was, while another one is made."""
    first, second = make_conn(), make_conn()
    rule(conn, producer, "enqueue", "mail")
    with transaction(first):
        rule(first, "public", "enqueue", "mail")
        drop = {"role": producer}
        with in_background(lambda: call(second, "drop_rule", **drop)) as dropping:
            blocked(conn, second)
            run(first, "commit")
            assert dropping.result(10) == 1
            run(first, "begin")
    with acting_as(conn, producer), refused("TL012"):
        enqueue(conn, queue="other")


# --- what it costs


def test_without_rules_a_call_touches_no_table_of_theirs(conn):
    worker = register(conn, "t")
    queries = ("select tasklib.enqueue('t')", "select * from tasklib.claim(%s)")

    def touched():
        run(conn, "select pg_stat_clear_snapshot()")
        return one(
            conn,
            "select coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)"
            " from pg_stat_xact_user_tables where relname in ('rule', 'role_limit', 'backlog')",
        )

    with transaction(conn):
        for text in queries:
            run(conn, text, *([worker] if "%s" in text else []))
        enqueue_many(conn, {"name": "t"})
        assert touched() == 0


def test_what_the_flags_follow_from(conn, producer):
    def flags():
        return run(conn, "select enqueue_ruled, claim_ruled from tasklib.config")[0]

    worker = register(conn, "t")
    assert flags() == (False, False)
    rule(conn, producer, "enqueue", "mail")
    assert flags() == (True, False)
    rule(conn, producer, "claim", "mail")
    assert flags() == (True, True)
    assert one(conn, "select restricted from tasklib.worker where id = %s", worker)
    call(conn, "drop_rule", role=producer, action="enqueue")
    assert flags() == (False, True)
    call(conn, "drop_rule", role=producer)
    assert flags() == (False, False)
    assert not one(conn, "select restricted from tasklib.worker where id = %s", worker)
    call(conn, "set_limit", role=producer, max_bytes=100)
    assert flags() == (True, False)
    call(conn, "drop_limit", role=producer)
    call(conn, "set_strict", strict=True)
    assert flags() == (True, True)
    call(conn, "set_strict", strict=False)
    assert flags() == (False, False)


# --- setting rules


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("TL001", {"role": None, "action": "enqueue"}),
        ("TL001", {"role": "", "action": "enqueue"}),
        ("TL001", {"role": "nobody_at_all", "action": "enqueue"}),
        ("TL002", {"role": "x" * 64, "action": "enqueue"}),
        ("TL001", {"role": "public", "action": None}),
        ("TL001", {"role": "public", "action": "all"}),
        ("TL001", {"role": "public", "action": "claim", "queue": ""}),
        ("TL001", {"role": "public", "action": "claim", "queue": None}),
        ("TL002", {"role": "public", "action": "claim", "queue": "q" * 129}),
        ("TL001", {"role": "public", "action": "claim", "name": "a\nb"}),
        ("TL002", {"role": "public", "action": "claim", "name": "n" * 129}),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(conn, code, arguments):
    before = fingerprint(conn)
    with refused(code, case=arguments):
        call(conn, "set_rule", **arguments)
    assert fingerprint(conn) == before


def test_dropping_refuses_what_makes_no_sense(conn):
    for arguments in ({"role": None}, {"role": ""}, {"role": "public", "action": "all"}):
        with refused("TL001", case=arguments):
            call(conn, "drop_rule", **arguments)
    with refused("TL001"):
        call(conn, "drop_limit", role=None)
    with refused("TL001"):
        call(conn, "set_strict", strict=None)


def test_rules_are_listed_with_who_set_them(conn, person, producer):
    admin = person("tasklib_admin")
    with acting_as(conn, admin):
        rule(conn, producer, "enqueue", "mail", "mail.*")
        rule(conn, producer, "enqueue", "mail", "mail.*")
        rule(conn, "public", "claim")
    listed = run(conn, "select role, action, queue, name, role_exists, set_by from tasklib.rules")
    assert sorted(listed) == sorted(
        [
            (producer, "enqueue", "mail", "mail.*", True, admin),
            ("public", "claim", "*", "*", True, admin),
        ]
    )
    with acting_as(conn, person("tasklib_observer")):
        assert len(run(conn, "select * from tasklib.rules")) == 2


def test_dropping_counts_and_spares_what_was_not_named(conn, producer):
    for queue in ("a", "b"):
        for action in ("enqueue", "claim"):
            rule(conn, producer, action, queue, "n*")
    rule(conn, "public", "enqueue", "a", "n*")
    drop = {"role": producer}
    assert call(conn, "drop_rule", **drop, queue="c") == 0
    assert call(conn, "drop_rule", **drop, name="n") == 0
    assert call(conn, "drop_rule", **drop, action="claim", queue="a", name="n*") == 1
    assert call(conn, "drop_rule", **drop, queue="b") == 2
    assert call(conn, "drop_rule", **drop) == 1
    assert one(conn, "select count(*) from tasklib.rules") == 1


def test_a_rule_survives_its_role_by_name_and_the_view_says_so(conn):
    role = f"gone_{uuid4().hex[:8]}"
    run(conn, f"create role {role}")
    rule(conn, role, "enqueue", "mail")
    run(conn, f"drop role {role}")
    assert not one(conn, "select role_exists from tasklib.rules")
    with acting_as(conn, "tasklib_producer"), refused("TL012"):
        enqueue(conn)
    assert call(conn, "drop_rule", role=role) == 1


def test_names_of_roles_are_taken_as_they_are(conn, person):
    role = f'Odd "name" {uuid4().hex[:8]}'
    quoted = '"' + role.replace('"', '""') + '"'
    run(conn, f"create role {quoted}")
    try:
        run(conn, f"grant tasklib_producer to {quoted}")
        rule(conn, role, "enqueue", "mail")
        with acting_as(conn, quoted):
            enqueue(conn, queue="mail")
            with refused("TL012"):
                enqueue(conn)
    finally:
        call(conn, "drop_rule", role=role)
        run(conn, f"drop role {quoted}")


# --- limits


@pytest.mark.parametrize(
    ("limit", "fine", "wrong"),
    [
        ({"max_bytes": 20}, {"kwargs": {"a": "x" * 11}}, {"kwargs": {"a": "x" * 12}}),
        ({"max_priority": 5}, {"priority": 5}, {"priority": 6}),
        ({"min_priority": -5}, {"priority": -5}, {"priority": -6}),
        ({"max_retries": 2}, {"max_retries": 2}, {"max_retries": 3}),
        ({"max_delay": "1 hour"}, {"delay": "1 hour"}, {"delay": "61 minutes"}),
    ],
)
def test_a_limit_holds_for_every_way_to_enqueue(conn, producer, limit, fine, wrong):
    call(conn, "set_limit", role=producer, **limit)
    before = fingerprint(conn)
    with acting_as(conn, producer):
        for options in ({}, {"tags": {"a": 1}}, {"unique_key": "k"}):
            with refused("TL013", case=options):
                enqueue(conn, **wrong, **options)
        with refused("TL013") as error:
            enqueue_many(conn, {"name": "t"}, {"name": "t", **wrong})
    assert "tasks[1]" in (error[0].diag.message_detail or "")
    assert producer in (error[0].diag.message_hint or "")
    assert fingerprint(conn) == before
    with acting_as(conn, producer):
        enqueue(conn, **fine)
        enqueue_many(conn, {"name": "t", **fine})
        enqueue(conn)
    enqueue(conn, **wrong)


def test_a_time_far_away_is_a_delay(conn, producer):
    call(conn, "set_limit", role=producer, max_delay="1 hour")
    with acting_as(conn, producer):
        near, far = run(
            conn, "select now() + interval '50 min' as near, now() + interval '70 min' as far"
        )[0]
        task_id = enqueue(conn, scheduled_at=near)
        enqueue(conn, scheduled_at="2000-01-01")
        with refused("TL013"):
            enqueue(conn, scheduled_at=far)
        with refused("TL013"):
            call(conn, "reschedule", id=task_id, scheduled_at=far)
        with refused("TL013"):
            call(conn, "reschedule", id=task_id, delay="2 hours")
        call(conn, "reschedule", id=task_id, delay="10 minutes")


def test_the_priority_that_reschedule_gives_is_limited(conn, producer):
    call(conn, "set_limit", role=producer, max_priority=5)
    with acting_as(conn, producer):
        task_id = enqueue(conn)
        with refused("TL013"):
            call(conn, "reschedule", id=task_id, priority=6)
        call(conn, "reschedule", id=task_id, priority=5)


def test_defaults_that_a_worker_registered_are_not_limited(conn, producer):
    register(conn, {"name": "t", "priority": 100, "max_retries": 50})
    call(conn, "set_limit", role=producer, max_priority=5, max_retries=1)
    with acting_as(conn, producer):
        task_id = enqueue(conn)
    assert task(conn, task_id).priority == 100


def test_the_nearest_limit_counts(conn, person):
    small, large = person(), person()
    member = person("tasklib_producer", small, large)
    own = person("tasklib_producer", small)
    other = person("tasklib_producer")
    call(conn, "set_limit", role="public", max_priority=1, max_retries=1)
    call(conn, "set_limit", role=small, max_priority=3)
    call(conn, "set_limit", role=large, max_priority=4)
    call(conn, "set_limit", role=own, max_priority=9)
    for role, highest in ((member, 3), (own, 9), (other, 1)):
        with acting_as(conn, role):
            enqueue(conn, priority=highest, max_retries=1)
            with refused("TL013", case=role):
                enqueue(conn, priority=highest + 1)
            with refused("TL013", case=role):
                enqueue(conn, max_retries=2)


def test_setting_another_role_sheds_no_limit(conn, person):
    login = person("tasklib_producer")
    call(conn, "set_limit", role=login, max_priority=1)
    with logged_in_as(conn, login), acting_as(conn, "tasklib_producer"), refused("TL013"):
        enqueue(conn, priority=2)


def count_backlog(conn):
    while True:
        tick(conn)
        if one(conn, "select (place, block) = (1, 0) from tasklib.backlog_round"):
            return


def test_a_role_whose_backlog_is_full_has_to_wait(conn, person, producer):
    other = person("tasklib_producer")
    call(conn, "set_limit", role="public", max_backlog=5)
    worker = register(conn, "t")
    with acting_as(conn, other):
        enqueue(conn)
    with acting_as(conn, producer):
        enqueue(conn, "unknown")
        enqueue(conn, delay="1 hour")
        ids = [enqueue(conn, concurrency_key="k", queue="mine") for _ in range(3)]
    assert len(claim(conn, worker, 2, ["mine"])) == 1
    count_backlog(conn)
    assert run(conn, "select role, counted from tasklib.backlog order by counted") == [
        (other, 1),
        (producer, 5),
    ]
    before = fingerprint(conn)
    with acting_as(conn, producer):
        for add in (
            lambda: enqueue(conn),
            lambda: enqueue(conn, tags={"a": 1}),
            lambda: enqueue_many(conn, {"name": "t"}),
        ):
            with refused("TL014", "has about 5 unfinished tasks, and may have 5"):
                add()
    assert fingerprint(conn) == before
    with acting_as(conn, producer):
        call(conn, "reschedule", id=ids[2], priority=1)
        call(conn, "cancel", id=ids[2])
        with refused("TL014"):
            call(conn, "retry", id=ids[2])
    with acting_as(conn, other):
        with refused("TL014"):
            enqueue_many(conn, *[{"name": "t"}] * 5)
        enqueue_many(conn, *[{"name": "t"}] * 4)
    count_backlog(conn)
    with acting_as(conn, producer):
        enqueue(conn)
    assert run(conn, "select role, backlog from tasklib.limits") == [("public", 0)]


def test_a_backlog_of_many_blocks_is_counted_over_several_ticks(conn, producer):
    call(conn, "set_limit", role=producer, max_backlog=100_000)
    with acting_as(conn, producer):
        for _ in range(3):
            enqueue_many(conn, *[{"name": "t"}] * 1000)
    rounds = 0
    while one(conn, "select coalesce(sum(counted), 0) from tasklib.backlog") == 0:
        tick(conn, 100)
        rounds += 1
    assert rounds > 2
    assert run(conn, "select role, counted, counting from tasklib.backlog") == [(producer, 3000, 0)]
    assert one(conn, "select backlog from tasklib.limits") == 3000
    run(conn, "delete from tasklib.parked")
    count_backlog(conn)
    count_backlog(conn)
    assert run(conn, "select * from tasklib.backlog") == []


def test_a_part_of_the_counting_costs_the_same_for_any_backlog(conn, producer):
    def part():
        # The least of some: a plan made anew, when autovacuum has analyzed, reads a thousand pages.
        pages = []
        for _ in range(3):
            run(conn, "update tasklib.backlog_round set place = 1, block = 0")
            pages.append(buffers(conn, "select tasklib._count_backlog(20)"))
        return min(pages)

    register(conn, "t")
    call(conn, "set_limit", role=producer, max_backlog=100_000)
    enqueue_many(conn, *[{"name": "t"}] * 5_000)
    cost = part()
    for _ in range(4):
        enqueue_many(conn, *[{"name": "t"}] * 5_000)
    assert one(conn, "select pg_relation_size('tasklib.ready') / 8192") > 100
    assert part() <= cost * 1.5 + 50


def test_nobody_counts_while_no_limit_asks_for_it(conn, producer):
    call(conn, "set_limit", role=producer, max_bytes=100)
    with acting_as(conn, producer):
        enqueue(conn)
    tick(conn)
    assert run(conn, "select * from tasklib.backlog") == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"role": None},
        {"role": "nobody_at_all"},
        {"role": "public", "max_bytes": 1},
        {"role": "public", "max_bytes": 1_048_577},
        {"role": "public", "min_priority": -1001},
        {"role": "public", "max_priority": 1001},
        {"role": "public", "min_priority": 2, "max_priority": 1},
        {"role": "public", "max_retries": -1},
        {"role": "public", "max_retries": 1001},
        {"role": "public", "max_delay": "-1 second"},
        {"role": "public", "max_delay": "6 years"},
        {"role": "public", "max_backlog": -1},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(conn, arguments):
    before = fingerprint(conn)
    with refused("TL001", case=arguments):
        call(conn, "set_limit", **arguments)
    assert fingerprint(conn) == before


def test_limits_are_exactly_what_was_set_last(conn, person, producer):
    admin = person("tasklib_admin")
    call(conn, "set_limit", role=producer, max_bytes=100, max_delay="1 day", max_backlog=7)
    with acting_as(conn, admin):
        call(conn, "set_limit", role=producer, max_priority=3)
    (limits,) = run(conn, "select * from tasklib.limits")
    assert (limits.max_bytes, limits.max_delay, limits.max_backlog) == (None, None, None)
    assert (limits.max_priority, limits.set_by, limits.role_exists) == (3, admin, True)
    assert call(conn, "drop_limit", role=producer)
    assert not call(conn, "drop_limit", role=producer)
    with acting_as(conn, producer):
        enqueue(conn, kwargs=Jsonb({"a": "x" * 200}).obj, priority=1000)
