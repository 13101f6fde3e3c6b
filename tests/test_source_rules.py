"""Rules that hold for every source file: what code may not do, and what may import what.

The rules about code read the syntax tree, so that they see code that no other test happens to run. Each has a test of
its own beside it that shows it a violation: a rule that cannot fail holds nothing.
"""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "gateway").rglob("*.py"), *(ROOT / "monitors").rglob("*.py")])
MAX_LINES = 450

TELEMETRY_SWITCH = "os.environ['ORT_DISABLE_TELEMETRY'] = '1'"
MUTABLE_CALLS = frozenset(
    {"dict", "list", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "count", "cycle", "local"}
    | {"Lock", "RLock", "Condition", "Event", "Semaphore", "Queue", "SimpleQueue", "empty", "zeros", "ones"}
    | {"WeakKeyDictionary", "WeakValueDictionary", "WeakSet"}
)
MUTATORS = frozenset(
    {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "sort", "reverse"}
    | {"remove", "discard", "pop", "popleft", "popitem", "clear"}
)
FORBIDDEN_IMPORTS = frozenset({"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"})
FORBIDDEN_CALLS = frozenset({"eval", "exec", "os.system", "os.popen", "tempfile.mktemp"})
WALL_CLOCK = frozenset(
    {"time.time", "time.time_ns", "date.today", "datetime.date.today", "datetime.now", "datetime.utcnow"}
    | {"datetime.today", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today"}
)
# Durations come from time.monotonic or time.perf_counter, which no one can set; these need the time of day.
WALL_CLOCK_USERS = {
    "gateway/cli.py": "a manifest tells when its version was made",
    "gateway/journal/ids.py": "an id begins with the time it was made",
    "gateway/control/aside.py": "the ledger's metrics tell how old labels are",
    "monitors/service.py": "a block of rows is complete when the time of day is past it",
    "gateway/journal/journal.py": "records tell when a request came",
    "gateway/journal/recovery.py": "a segment tells when it was sealed",
    "gateway/journal/segment.py": "a segment tells when it was sealed",
    "gateway/inference/delivery.py": "the statistics document tells when the last inference was",
    "gateway/models/source.py": "the age of a file is counted from its modification time",
}
NO_IO = ("socket", "asyncio", "os", "pathlib", "subprocess", "starlette", "uvicorn", "onnxruntime")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def dotted(node: ast.AST) -> str:
    """`a.b.c` for names and attributes of names, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that importing the module evaluates: all but the bodies of functions and lambdas."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]
            waiting += [*node.decorator_list, *arguments]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            continue
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def is_mutable(value: ast.expr | None) -> bool:
    displays = ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp
    if isinstance(value, ast.Call):
        return dotted(value.func).rpartition(".")[2] in MUTABLE_CALLS
    return isinstance(value, displays)


def mutable_bindings(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Names that a module, or a class in it, binds to a container, lock or array.

    A field of a msgspec Struct is left out: its default may only be an empty container, which each instance copies.
    """
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    structs = [node for node in classes if any(dotted(base).endswith("Struct") for base in node.bases)]
    fields = {id(each) for node in structs for each in node.body}
    for statement in [*tree.body, *(each for node in classes for each in node.body)]:
        if isinstance(statement, ast.AnnAssign) and id(statement) in fields:
            continue
        if isinstance(statement, ast.Assign | ast.AnnAssign) and is_mutable(statement.value):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((statement, dotted(target)) for target in targets)


# --- the rules: each takes a module's tree and yields (line, what is wrong) ---


def module_state(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A container at module or class level is a table: named in capitals and never changed; nothing is `global`."""
    for statement, name in mutable_bindings(tree):
        if name != "__all__" and not (name and name.isupper()):
            yield statement.lineno, f"{name} is mutable state of the module"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        changed = ""
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed = dotted(node.value)
        elif isinstance(node, ast.AugAssign):
            changed = dotted(node.target)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            changed = dotted(node.func.value)
        last = changed.rpartition(".")[2]
        if last.isupper():
            yield node.lineno, f"the table {changed} is changed"


def environment_at_import(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Importing reads and changes no environment variable."""
    for node in run_at_import(tree):
        if dotted(node) in ("os.environ", "os.environb", "os.getenv", "os.putenv", "environ", "getenv"):
            yield node.lineno, f"{dotted(node)} at import time"  # type: ignore[attr-defined]


def forbidden_constructs(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """No pickle, eval, shell, bare except, or middleware that buffers and breaks cancellation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "a bare except"
        elif isinstance(node, ast.Call) and dotted(node.func) in FORBIDDEN_CALLS:
            yield node.lineno, dotted(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"
        elif isinstance(node, ast.Name | ast.alias) and "BaseHTTPMiddleware" in ast.unparse(node):
            yield node.lineno, "BaseHTTPMiddleware"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node):
                if name.partition(".")[0] in FORBIDDEN_IMPORTS:
                    yield node.lineno, f"import of {name}"


def wall_clock(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The time of day is read by a class that is a Clock, and nowhere else."""
    clocks = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Clock")]
    within = {id(node) for clock in clocks for node in ast.walk(clock)}
    for node in ast.walk(tree):
        if id(node) not in within and dotted(node) in WALL_CLOCK:
            yield node.lineno, dotted(node)  # type: ignore[attr-defined]
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            for alias in node.names:
                if f"time.{alias.name}" in WALL_CLOCK:
                    yield node.lineno, f"from time import {alias.name}"


def log_facts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """No fact of a log event is called as logging calls its own: where the level is on, that raises KeyError."""
    own = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if "event" in keys and (wrong := keys & own):
                yield node.lineno, f"the facts of a log event use {', '.join(sorted(map(str, wrong)))}"


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that an import statement names; for `from a import b` both a and a.b, as b may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = node.module or ""
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def imports_of(tree: ast.Module) -> set[str]:
    """Everything a module imports, also inside functions, but not for the type checker alone."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {name for node in statements if id(node) not in typing_only for name in imported(node)}


def violations(rule: Callable[[ast.Module], Iterator[tuple[int, str]]], paths: Iterable[Path]) -> list[str]:
    return [f"{name_of(path)}:{line}: {what}" for path in paths for line, what in rule(tree_of(path))]


def test_no_module_holds_state() -> None:
    assert violations(module_state, SOURCES) == []


def test_importing_a_module_reads_no_environment_variable() -> None:
    first = ROOT / "gateway/__init__.py"
    # The exceptions: onnxruntime and numpy's BLAS read these variables when they are imported.
    assert len(violations(environment_at_import, [first])) == 2
    assert TELEMETRY_SWITCH in [ast.unparse(statement) for statement in tree_of(first).body]
    assert violations(environment_at_import, [path for path in SOURCES if path != first]) == []


def test_no_module_uses_what_is_forbidden() -> None:
    assert violations(forbidden_constructs, SOURCES) == []


def test_the_time_of_day_is_read_by_clocks_and_for_timestamps_alone() -> None:
    others = [path for path in SOURCES if name_of(path) not in WALL_CLOCK_USERS]
    assert violations(wall_clock, [path for path in others if path.parent != ROOT / "gateway/telemetry"]) == []


def test_no_fact_of_a_log_event_has_a_name_of_loggings_own() -> None:
    # There the lines of the log are made.
    assert violations(log_facts, [path for path in SOURCES if name_of(path) != "gateway/telemetry/logs.py"]) == []


def test_every_exemption_from_the_clock_rule_is_in_use() -> None:
    used = [name for name in WALL_CLOCK_USERS if list(wall_clock(tree_of(ROOT / name)))]
    assert used == list(WALL_CLOCK_USERS)


def test_a_file_holds_one_idea() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count >= MAX_LINES} == {}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (module_state, "seen = {}"),
        (module_state, "class A:\n    seen = []"),
        (module_state, "import threading\nlock = threading.Lock()"),
        (module_state, "A = {}\ndef f():\n    A[1] = 2"),
        (module_state, "import m\ndef f():\n    m.TABLE.update(a=1)"),
        (module_state, "def f():\n    global n\n    n = 1"),
        (environment_at_import, "import os\nx = os.getenv('X')"),
        (environment_at_import, "import os\ndef f(x=os.environ.get('X')): ..."),
        (environment_at_import, "import os\nclass A:\n    x = os.environ['X']"),
        (forbidden_constructs, "try: f()\nexcept: pass"),
        (forbidden_constructs, "import subprocess\nsubprocess.run('x', shell=True)"),
        (forbidden_constructs, "import subprocess\nsubprocess.run('x', shell=flag)"),
        (forbidden_constructs, "from pickle import loads"),
        (forbidden_constructs, "eval('1')"),
        (forbidden_constructs, "import numpy as np\nnp.load(path, allow_pickle=True)"),
        (forbidden_constructs, "from starlette.middleware.base import BaseHTTPMiddleware"),
        (wall_clock, "import time\ndef f():\n    return time.time()"),
        (wall_clock, "from time import time_ns"),
        (wall_clock, "import time\nf(now=time.time)"),
        (wall_clock, "from datetime import datetime\nx = datetime.now()"),
        (log_facts, "facts = {'event': 'done', 'name': name}"),
        (log_facts, "log.info('x', extra={'event': 'done', **more, 'module': 1})"),
    ],
)
def test_each_rule_finds_what_it_forbids(rule: Callable[[ast.Module], Iterator[tuple[int, str]]], code: str) -> None:
    assert list(rule(ast.parse(code)))


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (module_state, "TABLE = {'a': 1}\n__all__ = ['TABLE']\ndef f():\n    seen = {}\n    seen[1] = TABLE['a']"),
        (environment_at_import, "import os\ndef f():\n    return os.environ['X']"),
        (environment_at_import, "import os\nif __name__ == '__main__':\n    print(os.environ)"),
        (forbidden_constructs, "import subprocess\ntry: subprocess.run(['x'], shell=False)\nexcept OSError: pass"),
        (wall_clock, "import time\nclass SystemClock:\n    def now(self):\n        return time.time()"),
        (wall_clock, "import time\nbegan = time.monotonic()"),
        (log_facts, "facts = {'event': 'done', 'model': name}\nother = {'name': name}"),
    ],
)
def test_each_rule_lets_the_proper_way_pass(rule: Callable[[ast.Module], Iterator[tuple[int, str]]], code: str) -> None:
    assert list(rule(ast.parse(code))) == []


# --- what may import what ---


def module_path(name: str) -> Path | None:
    """The file of a module of this project, or None for any other name."""
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def reached(path: Path) -> dict[str, str]:
    """Every module that `path` imports, directly or through the project's own, with the file that imports it."""
    found: dict[str, str] = {}
    waiting, seen = [path], {path}
    while waiting:
        current = waiting.pop()
        for name in imports_of(tree_of(current)):
            found.setdefault(name, name_of(current))
            # Every import passes through gateway/__init__.py, whose only import of note is allowed above.
            inner = module_path(name) if name.startswith("gateway.") else None
            if inner is not None and inner not in seen:
                seen.add(inner)
                waiting.append(inner)
    return found


def is_io(name: str) -> bool:
    return name.partition(".")[0] in NO_IO


@pytest.mark.parametrize("path", sorted((ROOT / "gateway/oip").rglob("*.py")), ids=name_of)
def test_the_codecs_can_reach_no_module_that_does_io(path: Path) -> None:
    assert {name: by for name, by in reached(path).items() if is_io(name)} == {}


def test_the_version_policy_imports_no_module_that_does_io() -> None:
    names = imports_of(tree_of(ROOT / "gateway/models/policy.py"))
    assert names
    assert {name for name in names if is_io(name)} == set()


def importers_of_onnxruntime() -> list[str]:
    # Every worker of a parallel run asks this before its first test: only files that say the word are parsed.
    said = [path for path in SOURCES if "onnxruntime" in path.read_text(encoding="utf-8")]
    files = [
        path for path in said if any(name.partition(".")[0] == "onnxruntime" for name in imports_of(tree_of(path)))
    ]
    return [name_of(path).removesuffix(".py").replace("/", ".") for path in files]


@pytest.mark.parametrize("module", [*importers_of_onnxruntime(), "gateway.app", "gateway.cli"])
def test_onnxruntime_is_never_imported_before_its_telemetry_is_off(module: str) -> None:
    """1. The variable is set to on. 2. A module is imported in a fresh process, then onnxruntime itself.
    Result: at the moment of the first import of onnxruntime the variable says off.
    """
    script = f"""
import os, sys
def watch(event, arguments):
    if event == "import" and arguments[0] == "onnxruntime":
        print("seen", os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.addaudithook(watch)
import {module}
import onnxruntime
"""
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert set(result.stdout.splitlines()) == {"seen 1"}
