"""Tasks of the shop."""

from django.db import close_old_connections

import tasklib

from .models import Order


@tasklib.task(max_retries=5)
def send_receipt(order_id: int) -> str:
    """Send a receipt; the order is surely there, because it was committed with this task."""
    close_old_connections()
    order = Order.objects.get(pk=order_id)
    order.receipt_sent = True
    order.save(update_fields=["receipt_sent"])
    return order.email
