"""`labapex init`: a labapex.yaml from what can be read in a script, and from its author where it cannot."""

from __future__ import annotations

import ast
import json as jsonlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from labapex.cli import files
from labapex.cli.output import say
from labapex.errors import UsageError
from labapex.protocol.spec import MAX_CODE_BYTES, JobSpec, parse_spec

FILE = "labapex.yaml"
_EPOCH_FLAGS = ("--epochs", "--num-epochs", "--num_epochs", "--n-epochs", "--max-epochs", "--max_epochs")
_BUDGET = "10"
_LIKELY = ("train.py", "main.py")
_THERE = {"torch", "numpy", "safetensors", "labapex"}  # what every host has, and the session that a script may name
_STOOD_IN = {"tensorboard", "wandb", "mlflow"}  # where they are not there the runner plays them
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
"""Packages that are called otherwise than what is imported of them."""


@dataclass(frozen=True)
class Draft:
    """What is known of a job. `flag` is the script's own option for the number of epochs."""

    name: str
    script: str
    data: str | None
    flag: str | None
    epochs: int
    budget: str = _BUDGET
    requirements: tuple[str, ...] = ()

    def text(self) -> str:
        """labapex.yaml."""
        args = f'args: ["{self.flag}", "{{epochs}}"]   # {{epochs}} is E below\n' if self.flag else ""
        data = f"data: {_quoted(self.data)}                # all files of this folder travel with the job\n"
        listed = ", ".join(map(_quoted, self.requirements))
        packages = f"requirements: [{listed}]   # packages besides torch\n" if listed else ""
        return (
            f"name: {_quoted(self.name)}\n"
            f"script: {_quoted(self.script)}          # with every other *.py of the folder\n"
            f"{args}"
            f"{data if self.data else ''}"
            f"{packages}"
            f"epochs: {self.epochs}                    # E\n"
            f"budget: {self.budget}                   # credits that may be held at most\n"
            "# checkpoint_every: 10        # k: a commitment to the whole state every k iterations\n"
            "# iterations_per_epoch: 100   # I, only for a loop without a DataLoader\n"
        )


def init(
    path: Annotated[Path, typer.Argument(metavar="SCRIPT", help="The script that trains, or its folder.")] = Path(),
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Ask nothing; take what seems right.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a labapex.yaml that is there.")] = False,
) -> None:
    """Write a labapex.yaml for a script. On a terminal it asks for what cannot be read in the script."""
    write(path, ask=not yes and sys.stdin.isatty(), force=force)


def write(path: Path, *, ask: bool, force: bool = False) -> Path:
    """The file, written. Raises `UsageError` where there is one, or no script."""
    script = find(path)
    file = script.parent / FILE
    if file.exists() and not force:
        raise UsageError(f"{file} is there already; edit it, or replace it by --force")
    draft = read(script)
    if ask:
        draft = _asked(draft)
    check(draft)
    try:
        file.write_text(draft.text(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    say(f"Wrote {file}. Try it here with `labapex check {script.parent}`, submit it with `labapex run {script.parent}`")
    return file


def find(path: Path) -> Path:
    """The script that is meant: a file, or the one of a folder that trains. Raises `UsageError`."""
    if path.is_file() and path.suffix == ".py":
        return path
    if not path.is_dir():
        raise UsageError(f"{path} is neither a Python file nor a folder with one")
    scripts = sorted(each for each in path.glob("*.py") if not each.name.startswith((".", "_")))
    for name in _LIKELY:
        if path / name in scripts:
            return path / name
    if len(scripts) != 1:
        listed = ", ".join(script.name for script in scripts[:5])
        found = f"{len(scripts)} Python files ({listed})" if scripts else "no Python file"
        raise UsageError(f"{path.resolve()} holds {found}; name the script that trains: labapex init SCRIPT")
    return scripts[0]


def read(script: Path) -> Draft:
    """What the script itself says. It is parsed, not run. Raises `UsageError`."""
    try:
        with files.reading(script) as file:
            tree = ast.parse(file.read(MAX_CODE_BYTES))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(f"{script} is not Python: {error}") from None
    flag, epochs = next(_epoch_options(tree), (None, _assigned(tree) or 1))
    folder = script.resolve().parent
    data = "data" if (folder / "data").is_dir() and any((folder / "data").iterdir()) else None
    name = "".join(c for c in folder.name if c.isprintable()).strip()[:80] or script.stem
    packages = tuple(sorted(_packages(folder)))
    return Draft(name=name, script=script.name, data=data, flag=flag, epochs=epochs, requirements=packages)


def _packages(folder: Path) -> set[str]:
    """What the folder's code imports that is neither Python's, nor a host's, nor its own."""
    own, imported = set[str](), set[str]()
    for path in folder.glob("*.py"):
        own.add(path.stem)
        with files.reading(path) as file:
            text = file.read(MAX_CODE_BYTES)
        try:
            imported.update(_imports(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError):
            continue  # the script itself was read before; a file beside it need not be Python of this version
    own.update(each.name for each in folder.iterdir() if each.is_dir())
    known = own | _THERE | _STOOD_IN | sys.stdlib_module_names
    return {_PACKAGES.get(name, name) for name in imported - known}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def check(draft: Draft) -> JobSpec:
    """Raises `UsageError` where the answers make no job."""
    return parse_spec(
        {
            "name": draft.name,
            "script": draft.script,
            "data": draft.data,
            "epochs": draft.epochs,
            "budget": draft.budget,
            "requirements": draft.requirements,
        }
    )


def _quoted(text: str | None) -> str:
    """A JSON string is a YAML string too, as long as it is not escaped in UTF-16's way."""
    return jsonlib.dumps(text, ensure_ascii=False)


def _asked(draft: Draft) -> Draft:
    asked = _ask(draft, "name", "Name", draft.name)
    asked = _ask(asked, "data", "Data folder ('none' for none)", draft.data or "none")
    packages = " ".join(draft.requirements) or "none"
    asked = _ask(asked, "requirements", "Packages besides torch, with spaces between ('none' for none)", packages)
    asked = _ask(asked, "epochs", "Epochs", str(draft.epochs))
    if draft.flag is None:
        say(f"{draft.script} has no option for its epochs: make sure that it trains {asked.epochs} by itself")
    return _ask(asked, "budget", "Budget in credits", draft.budget)


def _ask(draft: Draft, field: str, question: str, default: str) -> Draft:
    """The draft with an answer that a job can have: what is wrong is said, and asked for again."""
    while True:
        said = str(typer.prompt(question, default=default, err=True)).strip()
        answer: object = said
        if field in ("data", "requirements"):
            words = () if said == "none" else tuple(said.split())
            answer = words if field == "requirements" else said if words else None
        try:
            spec = check(replace(draft, **{field: answer}))  # type: ignore[arg-type]
        except UsageError as error:
            say(str(error))
        else:
            return replace(draft, **{field: spec.epochs if field == "epochs" else answer})  # type: ignore[arg-type]


def _epoch_options(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(flag, default) of each `add_argument` that names a number of epochs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            named = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            flag = next((name for name in named if name in _EPOCH_FLAGS), None)
            default = next((word.value for word in node.keywords if word.arg == "default"), None)
            if flag is not None:
                yield str(flag), _count(default) or 1


def _assigned(tree: ast.AST) -> int | None:
    """N of an `epochs = N` anywhere in the script."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id.lower() in ("epochs", "num_epochs", "n_epochs")
            for target in node.targets
        ):
            return _count(node.value)
    return None


def _count(node: ast.expr | None) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
