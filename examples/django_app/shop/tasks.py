"""Tasks of the shop."""

import json
from collections.abc import Iterator

from django.db import close_old_connections, connection, transaction

import tasklib

from .models import Order


@tasklib.around
def django_connections(_task: tasklib.CurrentTask) -> Iterator[None]:
    """Do what Django does around a request: give up connections that broke or are too old."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


@tasklib.task(max_retries=5)
def send_receipt(order_id: int) -> str:
    """Send a receipt; that it was sent and the end of this task are one transaction."""
    with transaction.atomic():
        order = Order.objects.get(pk=order_id)
        order.receipt_sent = True
        order.save(update_fields=["receipt_sent"])
        complete(order.email)
        return order.email


def complete(result: object) -> None:
    """Complete the current task if Django's transaction commits; raise when it is not ours."""
    task = tasklib.current_task()
    with connection.cursor() as cursor:
        cursor.execute(
            "select tasklib.complete(%s, %s, %s, %s::jsonb)",
            [task.id, task.worker_id, task.attempt, json.dumps({"value": result})],
        )
