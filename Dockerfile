# opsctl with Debian's Python and the newest PostgreSQL that Debian stable has: pg_dump for every server up to that
# version, and a server for drills. Runs as a user of its own and needs no writable root file system:
#
#     docker run --rm --read-only --tmpfs /tmp --env DATABASE_URL --volume backups:/backups opsctl backup
#
# Wheels that lie in ./wheels are taken from there; `--build-arg PIP_NO_INDEX=1` takes no others.

FROM debian:trixie-slim AS base
# The package would set a server up and start it; drills make their own.
RUN mkdir --parents /etc/postgresql-common \
    && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates postgresql python3-venv tzdata \
    && rm --recursive --force /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb

FROM base AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE wheel[s] ./
COPY opsctl ./opsctl
ARG PIP_NO_INDEX
RUN python3 -m venv /opt/opsctl \
    && PIP_FIND_LINKS=/src /opt/opsctl/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]' \
    && /opt/opsctl/bin/pip uninstall --yes --quiet pip

FROM base
ARG VERSION
LABEL org.opencontainers.image.title="opsctl" \
      org.opencontainers.image.description="PostgreSQL backups that are proven, restores that can be undone" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim"

RUN useradd --system --uid 10001 --no-create-home --home-dir /var/lib/opsctl opsctl \
    && install --directory --owner opsctl --group opsctl --mode 0700 /backups /var/lib/opsctl
COPY --from=build /opt/opsctl /opt/opsctl
ENV PATH=/opt/opsctl/bin:$PATH \
    OPSCTL_STATE_DIR=/var/lib/opsctl \
    PYTHONDONTWRITEBYTECODE=1
USER opsctl
# ./backups, the default repository, is /backups; opsctl.toml is looked for in / and in /etc/opsctl.
WORKDIR /
VOLUME ["/backups", "/var/lib/opsctl"]

# That it runs and its configuration can be used; compose.yaml looks closer at what `serve` and `run-scheduled` do.
HEALTHCHECK --interval=1m --timeout=20s --start-period=20s CMD ["opsctl", "config", "validate", "--quiet"]
ENTRYPOINT ["opsctl"]
CMD ["--help"]
