# Two images of the platform. `platform`: web, and the stages that run nobody's code. `verifier`: besides them torch and
# bubblewrap, for the stages that run clients' scripts in a sandbox.
#   docker build -f docker/platform.Dockerfile --target platform -t labapex/platform .
FROM python:3.11.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN groupadd --gid 10001 labapex \
 && useradd --uid 10001 --gid labapex --home-dir /var/lib/labapex --create-home --shell /usr/sbin/nologin labapex
WORKDIR /opt/labapex

# What is installed: the locked packages that run in production, and none of the tools for development.
FROM base AS packages
COPY docker/requirements.txt docker/requirements.txt
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --require-hashes -r docker/requirements.txt

# The runner is frozen by the very Python that the platform has; workers get it with every job.
FROM packages AS runner
RUN apt-get update \
 && apt-get install --yes --no-install-recommends binutils=2.40-2 \
 && rm -rf /var/lib/apt/lists/*
COPY requirements.txt ./
COPY client_sdk client_sdk
COPY worker_agent worker_agent
RUN PYTHONPATH=client_sdk:worker_agent /opt/venv/bin/python -m labapex_runner.build --out build/runner \
 && rm -r build/runner/venv

# torch is the machine's choice. The build for CPUs verifies what was computed on CPUs; where another index has it,
# name that: --build-arg PIP_EXTRA_INDEX_URL=..
FROM packages AS torch
ARG TORCH=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL
RUN /opt/venv/bin/pip install "$TORCH"

FROM base AS platform
COPY --from=packages /opt/venv /opt/venv
COPY --from=runner /opt/labapex/build/runner build/runner
COPY manage.py requirements.txt ./
COPY client_sdk client_sdk
COPY worker_agent worker_agent
COPY platform platform
COPY examples examples
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/labapex/platform:/opt/labapex/client_sdk:/opt/labapex/worker_agent \
    DJANGO_SETTINGS_MODULE=labapex_server.settings \
    LABAPEX_HOME=/var/lib/labapex
USER 10001:10001
CMD ["python", "manage.py", "serve", "--host", "0.0.0.0", "--prepared", "--no-pipeline"]

FROM platform AS verifier
USER 0:0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap=0.8.0-2+deb12u1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=torch /opt/venv /opt/venv
USER 10001:10001
CMD ["celery", "-A", "labapex_server", "worker", "--queues", "labapex-sandbox", "--concurrency", "2"]
