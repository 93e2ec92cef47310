# syntax=docker/dockerfile:1

FROM python:3.13-slim-trixie AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY opsctl ./opsctl
RUN python -m pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels ".[serve]"

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="opsctl" \
      org.opencontainers.image.description="PostgreSQL backups that are proven, restores that can be undone" \
      org.opencontainers.image.licenses="MIT"

# pg_dump and pg_restore, with TLS.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-client \
    && rm -rf /var/lib/apt/lists/*

RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links /wheels "opsctl[serve]"

RUN useradd --system --uid 10001 --create-home opsctl \
    && install --directory --owner opsctl --mode 0700 /backups /var/lib/opsctl
ENV OPSCTL_STATE_DIR=/var/lib/opsctl
USER opsctl
# ./backups, the default repository, is /backups; opsctl.toml and .env are looked for in /.
WORKDIR /
VOLUME ["/backups", "/var/lib/opsctl"]

ENTRYPOINT ["opsctl"]
