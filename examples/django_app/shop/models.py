"""What the shop stores."""

from django.db import models


class Order(models.Model):
    """What was bought."""

    email = models.EmailField()
    receipt_sent = models.BooleanField(default=False)
