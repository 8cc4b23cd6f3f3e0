# The generator. Build from the root of the repository:
#   docker build --file services/docker/generator.Dockerfile --tag groupreplay/generator .
# For GPUs add --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128, or the index that fits your driver.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=generator,vllm-http,otel
# PIP_CERT and the secret pip_ca are for networks with a certificate authority of their own; neither stays.
ARG PIP_CERT
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protos protos
COPY clients clients
COPY services services
RUN --mount=type=secret,id=pip_ca python -m venv --without-pip /opt/groupreplay \
  && python -m pip --python /opt/groupreplay/bin/python install \
    --extra-index-url "${TORCH_INDEX}" ".[${EXTRAS}]" \
  && find /opt/groupreplay -name '*.pyi' -delete

FROM python:${PYTHON}
# Bytecode of all there is: nothing can be written later, and without it each start and health check compiles anew.
RUN python -m pip uninstall --yes --quiet --root-user-action ignore pip setuptools wheel \
  && python -m compileall -q -x '/(test|idlelib|lib2to3|turtledemo)/' /usr/local/lib \
  && groupadd --gid 10001 groupreplay \
  && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin groupreplay \
  && install --directory --owner 10001 --group 10001 /weights
COPY --from=build /opt/groupreplay /opt/groupreplay
COPY services/docker/healthcheck.py /opt/healthcheck.py
# Idle OpenMP threads sleep: spinning ones take the cores that the container's neighbours need.
ENV PATH=/opt/groupreplay/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp OMP_WAIT_POLICY=PASSIVE
USER 10001:10001
WORKDIR /weights
EXPOSE 9102
STOPSIGNAL SIGTERM
# Answers once the generator has opened its model; what it serves is for Prometheus.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "/opt/healthcheck.py", "http://127.0.0.1:9102/metrics"]
ENTRYPOINT ["groupreplay"]
CMD ["generate", "--metrics.listen", "0.0.0.0:9102"]
# Last, since they change with every commit.
ARG PYTHON
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="groupreplay generator" \
  org.opencontainers.image.description="Samples and scores rollout groups for groupreplay" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.base.name="docker.io/library/python:${PYTHON}"
