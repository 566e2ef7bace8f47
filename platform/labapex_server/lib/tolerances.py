"""The calibrations that the operator has put on record: `labapex calibrate` writes them, `home/tolerances/*.json` holds them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from django.conf import settings

from labapex.errors import MalformedInput
from labapex.proof.tolerance import MAX_CALIBRATION, Calibration, Tolerance
from labapex.protocol.canonical import parse
from labapex.protocol.contract import Contract, Environment

log = logging.getLogger(__name__)


def between(worker: Environment | None, verifier: Environment | None, every: int) -> Tolerance:
    """What work of one class of hosts may differ by where another judges it, at k = `every`."""
    found = _calibration(worker, verifier, every)
    return Tolerance() if found is None else found.tolerance(worker, verifier, every)


def gap(worker: Environment, verifier: Environment | None, contract: Contract) -> str | None:
    """Why a run of this class could not be judged on that one, in words; None where it can be."""
    if worker == verifier:
        return None
    found = _calibration(worker, verifier, contract.checkpoint_every)
    return Tolerance().reason if found is None else found.gap(contract)


def _calibration(worker: Environment | None, verifier: Environment | None, every: int) -> Calibration | None:
    wanted = worker, verifier, every
    return next((c for c in _on_record() if (c.worker, c.verifier, c.checkpoint_every) == wanted), None)


def _on_record() -> Iterator[Calibration]:
    for path in sorted((settings.LABAPEX.home / "tolerances").glob("*.json")):
        try:
            with path.open("rb") as file:
                yield parse(Calibration, file.read(MAX_CALIBRATION + 1), limit=MAX_CALIBRATION)
        except (OSError, MalformedInput) as error:
            log.error("%s is no calibration and does not count: %s", path, error)
