"""One view, and the URLs of the project."""

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from .models import Order
from .tasks import send_receipt


@csrf_exempt
def buy(request: HttpRequest) -> JsonResponse:
    """Store an order and enqueue its receipt, in one transaction."""
    try:
        with transaction.atomic():
            order = Order.objects.create(email=request.POST["email"])
            task_id = send_receipt.options(connection=connection).delay(order.pk)
            order.full_clean()
    except ValidationError as error:
        return JsonResponse({"errors": error.messages}, status=400)
    return JsonResponse({"order": order.pk, "task": str(task_id)}, status=202)


urlpatterns = [path("buy", buy)]
