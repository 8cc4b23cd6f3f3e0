"""What no line of the product may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("clients", "services") for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
ALLOWED = {"services/groupreplay_generator/scoring/worker_main.py": ["import pickle"]}
"""Problems go to the processes that score them, which the generator itself starts, by a pipe between the two; nothing
that came over a network, and nothing that they answer, is unpickled."""


def violations(tree: ast.AST) -> Iterator[str]:
    """Yield what would run data as code: pickles, eval, torch.load of more than weights, shells, yaml.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {it.name}" for it in node.names if it.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield f"from {node.module} import"
        elif isinstance(node, ast.Call):
            options = {it.arg: it.value for it in node.keywords}
            if isinstance(node.func, ast.Name) and node.func.id in BUILT_IN:
                yield f"{node.func.id}()"
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                called = f"{node.func.value.id}.{node.func.attr}"
                if called == "torch.load" and not _is_true(options.get("weights_only")):
                    yield "torch.load() without weights_only=True"
                if called in {"yaml.load", "os.system", "os.popen"}:
                    yield f"{called}()"
            yield from (f"{name}=True" for name in ("allow_pickle", "shell") if _is_true(options.get(name)))


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_comes_in_is_run(path: Path) -> None:
    """No pickle, eval, exec or shell anywhere in what is installed."""
    assert list(violations(ast.parse(path.read_text()))) == ALLOWED.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec('1')", "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run('x', shell=True)", "os.system('x')", "yaml.load(f)", "import dill.source",
    ],
)  # fmt: skip
def test_the_look_for_it_finds_it(code: str) -> None:
    """The test above can fail."""
    assert list(violations(ast.parse(code)))
