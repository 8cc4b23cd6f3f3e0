# The replay service. Build from the root of the repository:
#   docker build --file services/docker/server.Dockerfile --tag groupreplay/server .
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
# PIP_CERT and the secret pip_ca are for networks with a certificate authority of their own; neither stays.
ARG PIP_CERT
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protos protos
COPY clients clients
COPY services services
RUN --mount=type=secret,id=pip_ca python -m venv --without-pip /opt/groupreplay \
  && python -m pip --python /opt/groupreplay/bin/python install '.[server,admin,otel]' \
  && find /opt/groupreplay -name '*.pyi' -delete

FROM python:${PYTHON}
# Bytecode of all there is: nothing can be written later, and without it each start and health check compiles anew.
RUN python -m pip uninstall --yes --quiet --root-user-action ignore pip setuptools wheel \
  && python -m compileall -q -x '/(test|idlelib|lib2to3|turtledemo)/' /usr/local/lib \
  && groupadd --gid 10001 groupreplay \
  && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin groupreplay \
  && install --directory --owner 10001 --group 10001 /data
COPY --from=build /opt/groupreplay /opt/groupreplay
COPY services/docker/healthcheck.py /opt/healthcheck.py
ENV PATH=/opt/groupreplay/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "/opt/healthcheck.py", "http://127.0.0.1:8080/readyz"]
ENTRYPOINT ["groupreplay"]
CMD ["serve"]
# Last, since they change with every commit.
ARG PYTHON
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="groupreplay server" \
  org.opencontainers.image.description="Prioritized group replay as a service for RLVR training" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.base.name="docker.io/library/python:${PYTHON}"
