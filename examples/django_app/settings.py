"""Settings of the smallest project that has a database."""

import os

from psycopg.conninfo import conninfo_to_dict

SECRET_KEY = "only-an-example"
DEBUG = True
ALLOWED_HOSTS = ["localhost", "testserver"]
ROOT_URLCONF = "shop.views"
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# One variable for Django and for TaskLib, so that they cannot point to different databases.
url = conninfo_to_dict(os.environ["TASKLIB_DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url["dbname"],
        "USER": url.get("user", ""),
        "PASSWORD": url.get("password", ""),
        "HOST": url.get("host", ""),
        "PORT": url.get("port", ""),
    }
}
