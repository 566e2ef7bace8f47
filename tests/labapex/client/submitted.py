"""A job that was handed in, and followed to its end."""

from __future__ import annotations

from uuid import UUID

from tests.labapex.memory_platform import MemoryPlatform

from labapex.client import Client
from labapex.protocol.spec import JobSpec

SPEC = JobSpec.model_validate({"script": "train.py", "data": "data", "epochs": 3, "budget": 10})


def finished(platform: MemoryPlatform, client: Client, spec: JobSpec = SPEC) -> UUID:
    """A job whose story was told to its end."""
    job = platform.add(spec).id
    list(client.follow(job))
    return job
