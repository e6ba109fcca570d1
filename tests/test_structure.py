"""The package keeps its shape: small modules of different names, imports without circles, errors in one style."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import sea_export

PACKAGE = Path(sea_export.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
REGISTRIES = {"options.py", "export/formats.py"}
"""The modules that may ask for the format of an export."""

_PLACEHOLDER = "{}"
_CAPITALIZED = re.compile(r"[A-Z][a-z]+\b")
_NAMES = {"Parquet", "Python"}
_VERBS = re.compile(r"\b(is|are|was|were|has|have|holds|cannot|needs|gives|does|must|may|broke|failed)\b")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in MODULES.items():
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_few_modules_lie_directly_in_the_package() -> None:
    assert len([name for name in MODULES if "/" not in name]) <= 8


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_no_two_modules_have_one_name() -> None:
    stems = Counter(path.stem for path in MODULES.values())
    assert not [name for name, path in MODULES.items() if stems[path.stem] > 1 and path.stem != "__init__"]


def test_imports_go_in_no_circle() -> None:
    """Those for type checkers alone, and those inside of functions, included."""
    graph = grimp.build_graph("sea_export", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises an error that names the modules of a circle


def test_options_are_no_dictionaries() -> None:
    found = []
    for name, tree in trees():
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = function.args
                for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    annotation = "" if one.annotation is None else ast.unparse(one.annotation)
                    if one.arg in ("values", "options") and re.search(r"\b(dict|Mapping)\[str, Any\]", annotation):
                        found.append(f"{name}:{one.lineno}: {function.name}({one.arg}: {annotation})")
    assert not found


def test_only_the_registry_asks_for_a_format() -> None:
    asked = re.compile(r"\bformat (==|!=)|isinstance\(plan\b")
    found = [
        (name, f"{name}:{number}: {line.strip()}")
        for name, path in MODULES.items()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if asked.search(line)
    ]
    assert not [place for name, place in found if name not in REGISTRIES]
    assert len(found) <= 3


# Errors


def texts_of(node: ast.expr) -> list[str]:
    """What a string in code says, with placeholders for values; of a choice of two strings, both. Empty for others."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else _PLACEHOLDER for part in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts_of(node.left) for right in texts_of(node.right)]
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body), *texts_of(node.orelse)]
    return []


def messages() -> Iterator[tuple[str, str]]:
    """Where the message of an error is written, and the message."""
    for name, tree in trees():
        for call in ast.walk(tree):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id in ("InputError", "SeaExportError")
            ):
                for text in texts_of(call.args[0]):
                    yield f"{name}:{call.lineno}", text


def in_one_style(message: str) -> bool:
    """Whether a message is `SUBJECT: what is wrong. What to do.`, of which a placeholder may be the last sentence."""
    subject, colon, rest = message.partition(": ")
    capitalized = _CAPITALIZED.match(rest)
    return bool(
        subject
        and colon
        and not _VERBS.search(subject)
        and message.endswith((".", ". {}", ": {}"))
        and (capitalized is None or capitalized.group() in _NAMES)
    )


def test_errors_are_in_one_style() -> None:
    found = list(messages())
    assert len(found) > 100, "the messages of the package are found"
    others = [f"{place}: {message}" for place, message in found if not in_one_style(message)]
    assert not others, "\n".join(others)


def test_the_style_of_errors_can_be_missed() -> None:
    assert in_one_style("{}: it holds no tensors. Download it again.")
    assert in_one_style("{}, row {}: {} is empty.")
    assert in_one_style("{}: PEFT cannot load it. {}")
    for message in (
        "It holds no tensors.",
        "{}: it holds no tensors",
        "{}: It holds no tensors.",
        ": it holds no tensors.",
        "{} holds no tensors: download it again.",
    ):
        assert not in_one_style(message)


LOADERS = {"from_pretrained", "from_config", "load_adapter"}
"""The methods of transformers and PEFT that load what a directory holds, and may run code that comes with it."""
LOADING_NOTHING = {"AutoHfQuantizer"}
"""A class with a method of such a name that reads no file."""
ANSWERED = {"from_pretrained", "from_config"}
"""Those of them that ask whether code may run if they are not told."""
MAY_LOAD = {"model/pretrained.py", "verification/verification_probe.py"}
"""The module that all others load with, and the program that computes what a machine without sea-export would."""


def test_models_are_loaded_in_one_module_that_says_whether_their_code_may_run() -> None:
    elsewhere, unanswered = [], []
    for name, tree in trees():
        for node in ast.walk(tree):
            owner = getattr(getattr(node, "value", None), "id", None)
            loads = isinstance(node, ast.Attribute) and node.attr in LOADERS and owner not in LOADING_NOTHING
            if loads and name not in MAY_LOAD:
                elsewhere.append(f"{name}:{node.lineno}")
            called = getattr(node.func, "attr", None) if isinstance(node, ast.Call) else None
            if (
                called in ANSWERED
                and name in MAY_LOAD
                and "trust_remote_code" not in {keyword.arg for keyword in node.keywords}
            ):
                unanswered.append(f"{name}:{node.lineno}")
    assert not elsewhere
    assert not unanswered


def test_other_processes_are_started_in_one_module() -> None:
    starting = {"subprocess", "multiprocessing", "concurrent.futures.process", "pty"}
    found = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            modules = {node.module} if isinstance(node, ast.ImportFrom) else set()
            if isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            if modules & starting:
                found.add(name)
    assert found == {"model/isolated_python.py"}
