# The daemon of a host, for owners who prefer a container to the service that `labapex-worker install` makes. It needs the
# NVIDIA container toolkit on the host, and user namespaces for its sandbox: see docker/compose.worker.yaml.
#   docker build -f docker/worker.Dockerfile -t labapex/worker .
FROM python:3.11.11-slim-bookworm
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap=0.8.0-2+deb12u1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 labapex \
 && useradd --uid 10001 --gid labapex --home-dir /var/lib/labapex --create-home --shell /usr/sbin/nologin labapex
WORKDIR /opt/labapex
COPY docker/requirements.txt docker/requirements.txt
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --require-hashes -r docker/requirements.txt
# Without torch, jobs bring the platform's; with the build that fits the host's driver they need not.
ARG TORCH=
ARG PIP_EXTRA_INDEX_URL
RUN if [ -n "$TORCH" ]; then /opt/venv/bin/pip install "$TORCH"; fi
COPY client_sdk client_sdk
COPY worker_agent worker_agent
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/labapex/client_sdk:/opt/labapex/worker_agent
USER 10001:10001
ENTRYPOINT ["python", "-c", "from labapex_worker.cli import main; main()"]
CMD ["run"]
