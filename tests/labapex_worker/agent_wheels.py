"""Wheels of the agent, as a platform releases them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (("client_sdk", "labapex"), ("worker_agent", "labapex_worker"), ("worker_agent", "labapex_runner"))


def make(version: str, *, files: dict[str, str] | None = None, whole: bool = True) -> bytes:
    """The sources of here as `version`; `files` stand in place of, or beside, those. Not `whole`: `files` alone."""
    content = {f"labapex-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: labapex\nVersion: {version}\n"}
    for root, package in SOURCES if whole else ():
        for path in sorted((ROOT / root / package).rglob("*.py")):
            content[str(path.relative_to(ROOT / root))] = path.read_text()
    content |= files or {}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return made.getvalue()
