"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_tasklib")]
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("email", models.EmailField(max_length=254)),
                ("receipt_sent", models.BooleanField(default=False)),
            ],
        ),
    ]
