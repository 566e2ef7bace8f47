"""The build: only the runner's own packages, at the locked versions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from labapex_runner import build
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


def test_whatever_the_runner_imports_of_ours_is_frozen_with_it() -> None:
    """A module that is left out is missed only on a host, in a program that nobody has rebuilt yet."""
    frozen = dict(build._sources())
    library = frozen["labapex/__init__.py"].parents[1]
    wanted = {name for name in frozen if name.startswith("labapex_runner/") and name.endswith(".py")}
    wanted, seen = wanted - {"labapex_runner/build.py"}, set[str]()
    while wanted:
        name = wanted.pop()
        assert name in frozen, name
        seen.add(name)
        for node in ast.walk(ast.parse(frozen[name].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "labapex":
                module = (node.module or "").replace(".", "/")
                modules = {f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names)}
                wanted |= {path for path in modules if (library / path).is_file()} - seen
    assert "labapex/protocol/frames.py" in seen
