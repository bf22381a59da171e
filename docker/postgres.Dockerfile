# PostgreSQL with the queue installed in its first database.
#
#   docker build -f docker/Dockerfile -t tasklib .
#   docker build -f docker/postgres.Dockerfile -t tasklib-postgres docker
#
# For development and tests. A database that lives longer is migrated by `tasklib migrate`, which also
# brings one made from this image up to date.

ARG POSTGRES_VERSION=18
ARG TASKLIB_IMAGE=tasklib

FROM ${TASKLIB_IMAGE} AS sql
USER root
RUN tasklib sql > /install.sql

FROM postgres:${POSTGRES_VERSION}
COPY --from=sql /install.sql /docker-entrypoint-initdb.d/10-tasklib.sql
