"""Traps of this layout that would show up far from their cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = ("client_sdk", "worker_agent", "platform")


def test_no_source_root_is_a_package() -> None:
    """`platform/__init__.py` on the path would take the place of the standard library's `platform`."""
    assert not [root for root in SOURCE_ROOTS if (ROOT / root / "__init__.py").exists()]


def test_the_standard_librarys_platform_is_found_from_the_checkout() -> None:
    code = "import platform, uuid; print(platform.system())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "Linux"


def test_no_test_folder_is_a_package_or_shadows_a_module() -> None:
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert not [folder for folder in folders if (folder / "__init__.py").exists()]
    assert not [folder for folder in (ROOT / "tests").iterdir() if folder.name in sys.stdlib_module_names]
