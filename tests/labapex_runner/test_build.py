"""The build: only the runner's own packages, at the locked versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labapex_runner.build import DEFAULT_LOCK, ROOTS, BuildFailed, subset

LOCK = """\
# made by pip-compile
a==1 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via
    #   -r requirements.in
    #   b
b-c==2 \\
    --hash=sha256:bb
    # via a
d==3 \\
    --hash=sha256:dd
    # via
    #   b-c
    #   unrelated
unrelated==4 \\
    --hash=sha256:ee
    # via -r requirements.in
"""


def test_the_subset_holds_what_the_roots_need_with_its_hashes() -> None:
    made = subset(LOCK, ("a",))
    assert re.findall(r"^(\S+)==", made, re.M) == ["a", "b-c", "d"]
    assert "--hash=sha256:ab" in made


def test_a_package_that_is_not_locked_is_refused() -> None:
    with pytest.raises(BuildFailed, match="nothing"):
        subset(LOCK, ("nothing",))


def test_no_web_framework_and_no_tensors_are_among_the_runner_s_packages() -> None:
    names = set(re.findall(r"^([a-z0-9._-]+)==", subset(Path(DEFAULT_LOCK).read_text(), ROOTS), re.M))
    assert {"cffi", "pydantic-core", "pyinstaller-hooks-contrib", *ROOTS} <= names
    assert not names & {"django", "celery", "torch", "numpy", "safetensors", "httpx"}
