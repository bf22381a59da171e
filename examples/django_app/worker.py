"""What `tasklib worker worker` imports: Django first, then the tasks."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

import shop.tasks  # noqa: E402, F401
