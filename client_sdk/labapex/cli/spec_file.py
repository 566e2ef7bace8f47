"""From `labapex.yaml` and the flags to a `JobSpec`: flags beat the file, and a mistake is named where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from labapex.errors import UsageError
from labapex.protocol.spec import JobSpec, parse_spec

MAX_SPEC = 256 * 1024
# The last three PyYAML lets out where a tag is at odds with its value: `!!int ""`, `!!bool x`, `!!timestamp x`.
_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, ArithmeticError, LookupError, AttributeError)


def place(path: Path) -> Path:
    """Where the file lies: in a folder it has its usual name."""
    return path / "labapex.yaml" if path.is_dir() else path


def load(path: Path, overrides: dict[str, Any]) -> tuple[JobSpec, Path]:
    """The spec of a file (or of `labapex.yaml` in a folder) and the folder it lies in; raises `UsageError`."""
    file = place(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_SPEC + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no {file}; `labapex init` writes one") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > MAX_SPEC:
        raise UsageError(f"{file} is longer than {MAX_SPEC} bytes; it should name files, not hold them")
    try:
        document = yaml.safe_load(data)
    except _NO_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{file}{where} is not YAML: {getattr(error, 'problem', None) or 'it cannot be read'}"
        ) from None
    try:
        if isinstance(document, dict):
            _check_args(document.get("args"))
            document = {**document, **{name: value for name, value in overrides.items() if value is not None}}
        return parse_spec(document), file.parent
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _check_args(args: Any) -> None:
    """YAML reads `0.10` as a number; which text the script should get only its author knows."""
    if isinstance(args, str):
        raise UsageError('args: must be a list, for example ["--epochs", "{epochs}"]')
    for arg in args if isinstance(args, list) else []:
        if isinstance(arg, bool | int | float):
            raise UsageError(f'args: write {arg} in quotes, "{arg}"')
