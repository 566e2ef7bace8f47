"""Makes an unmodified script's own loops observable, in memory: the file on disk is never touched.

    for x in ITER: BODY      ->   L = __labapex__.each("train.py:41", ITER)
                                  try:
                                      for x in L: BODY
                                  finally: L.exit()

    while COND: BODY         ->   L = __labapex__.turns("train.py:41")
                                  try:
                                      while L.turn() and (COND): BODY
                                  finally: L.exit()

`enumerate` and `zip`, where they are Python's own, become twins that can be started again: `twin(enumerate)(..)`. Line numbers
stay, so tracebacks and the names of loops are those of the client's file.
"""

from __future__ import annotations

import ast
import importlib.machinery
import linecache
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

HANDLE = "__labapex__"
LOOP_PREFIX = "_labapex_loop_"


def compile_script(source: str | bytes, path: Path, name: str, targets: frozenset[str] | None = None) -> CodeType:
    """Compile a script with its loops instrumented. `name` is how its loops are called.

    With `targets` only the `for` loops over variables of these names are, and `while` loops if "while" is among them. Raises
    `SyntaxError` as `compile` does.
    """
    tree = ast.parse(source, filename=str(path))
    tree = ast.fix_missing_locations(_Loops(name, targets).visit(tree))
    return compile(tree, str(path), "exec", dont_inherit=True)


def execute(script: Path, root: Path, argv: list[str], handle: Any) -> ModuleType:
    """Run a script as `__main__`, with every module under `root` instrumented too. `handle` receives the loops.

    Whatever the script raises comes through, `SystemExit` included.
    """
    import builtins

    setattr(builtins, HANDLE, handle)
    sys.dont_write_bytecode = True
    sys.path_hooks.insert(0, _path_hook(root))
    sys.path_importer_cache.clear()
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *argv]
    module = ModuleType("__main__")
    module.__file__ = str(script)
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    source = script.read_bytes()
    linecache.checkcache(str(script))
    exec(compile_script(source, script, script.relative_to(root).as_posix()), module.__dict__)  # noqa: S102
    return module


def _path_hook(root: Path) -> Any:
    class Loader(importlib.machinery.SourceFileLoader):
        def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
            place = Path(path)
            return compile_script(data, place, place.relative_to(root).as_posix())

        def path_stats(self, path: Any) -> Any:
            raise OSError("instrumented modules are always compiled from their source")

    def hook(entry: str) -> importlib.machinery.FileFinder:
        if not Path(entry).resolve().is_relative_to(root):
            raise ImportError("not a folder of the job")
        return importlib.machinery.FileFinder(entry, (Loader, [".py"]))

    return hook


class _Loops(ast.NodeTransformer):
    def __init__(self, name: str, targets: frozenset[str] | None) -> None:
        self.name = name
        self.targets = targets
        self.count = 0

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        # A loop in a class body would leave its handle behind as a class attribute; methods are instrumented.
        node.body = [self.visit(s) if isinstance(s, ast.FunctionDef | ast.ClassDef) else s for s in node.body]
        return node

    def visit_For(self, node: ast.For) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if self.targets is not None and not (isinstance(node.target, ast.Name) and node.target.id in self.targets):
            return node
        variable, name = self._new(node)
        start = _call("each", ast.Constant(name), node.iter)
        node.iter = ast.Name(variable, ast.Load())
        return _guarded(variable, start, node)

    def visit_While(self, node: ast.While) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if self.targets is not None and "while" not in self.targets:
            return node
        variable, name = self._new(node)
        turn = ast.Call(ast.Attribute(ast.Name(variable, ast.Load()), "turn", ast.Load()), [], [])
        node.test = ast.BoolOp(ast.And(), [turn, node.test])
        return _guarded(variable, _call("turns", ast.Constant(name)), node)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if self.targets is None and isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip"):
            node.func = ast.copy_location(_call("twin", node.func), node.func)
        return node

    def _new(self, node: ast.stmt) -> tuple[str, str]:
        self.count += 1
        return f"{LOOP_PREFIX}{self.count}", f"{self.name}:{node.lineno}"


def _call(method: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(ast.Name(HANDLE, ast.Load()), method, ast.Load()), list(args), [])


def _guarded(variable: str, start: ast.expr, loop: ast.stmt) -> list[ast.stmt]:
    leave = ast.Expr(ast.Call(ast.Attribute(ast.Name(variable, ast.Load()), "exit", ast.Load()), [], []))
    assign = ast.Assign([ast.Name(variable, ast.Store())], start)
    guard = ast.Try([loop], [], [], [leave])
    for statement in (assign, leave):  # on the head's first line: a call is reported where its method's name ends
        ast.copy_location(statement, loop).end_lineno = loop.lineno
        statement.end_col_offset = loop.col_offset
    return [assign, ast.copy_location(guard, loop)]
