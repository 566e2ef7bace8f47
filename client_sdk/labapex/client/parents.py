"""Models that a job starts from: those that lie in a folder on this machine, as `labapex pull` leaves them there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from labapex import bundle
from labapex.certificate import MAX_BUNDLE, CertificateBundle, Statement, certificate_digest, check_weights
from labapex.errors import MalformedInput, UsageError
from labapex.protocol.canonical import parse
from labapex.protocol.spec import JobSpec

_NAME = re.compile(r"[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def collect(folder: Path, spec: JobSpec) -> tuple[JobSpec, bundle.LocalBundle]:
    """A job's files, and its spec with each folder in `start_from` replaced by the digest of the certificate in it.

    Whether the platform's log holds that certificate is the platform's to say. Raises `UsageError`."""
    files = bundle.collect(folder, spec)
    names, models = [], dict[str, Path]()
    for name in spec.start_from:
        if _NAME.fullmatch(name):
            names.append(name)
            continue
        certificate, digest, weights = _local(folder, name)
        names.append(certificate)
        models[digest] = weights
    return spec.model_copy(update={"start_from": tuple(names)}), bundle.LocalBundle(files.bundle, files.files, models)


def _local(folder: Path, name: str) -> tuple[str, str, Path]:
    """The digests of the certificate and of the weights in a folder, and where these lie."""
    place = (folder / name).expanduser()
    certificate, weights = place / "certificate.json", place / "model.safetensors"
    for file in (certificate, weights):
        if not file.is_file():
            raise UsageError(
                f"start_from: {name} is no job's id, and there is no {file}; `labapex pull JOB -o FOLDER` makes such a folder"
            )
    try:
        with certificate.open("rb") as stream:
            payload = parse(CertificateBundle, stream.read(MAX_BUNDLE + 1), limit=MAX_BUNDLE).envelope.body()
        with weights.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        check_weights(parse(Statement, payload, limit=MAX_BUNDLE), digest)
    except (OSError, MalformedInput) as error:
        raise UsageError(f"start_from: {place}: {error}") from None
    return certificate_digest(payload), digest, weights
