"""The Python snippets of the documentation run, after those of the front page; the API page has every public name."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import jax
import matplotlib.pyplot as plt
import pytest

import lrjax as lr

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if "```python" in path.read_text() and path.stem != "index")


def run_snippets(page, namespace):
    # Blocks marked "py" want what a test has not, a cluster say.
    for code in re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL):
        exec(compile(code, f"{page}.md", "exec"), namespace)
    plt.close("all")


@pytest.fixture(scope="module")
def front_page():
    namespace = {}
    run_snippets("index", namespace)
    return namespace


def test_the_front_page_recovers_the_matrix(front_page):
    assert lr.metrics.relative_error(front_page["solution"].factors, front_page["truth"]) < 1e-5


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, front_page):
    namespace = dict(front_page)
    run_snippets(page, namespace)
    if page == "concepts":
        assert namespace["errors"][1] > 0.1  # rank 2 is too small
        assert namespace["errors"][2] < 1e-5
        assert namespace["completion"].holdout_rmse < 1e-4
    elif page == "sharding":
        assert namespace["errors"].max() < 1e-4
    elif page == "debugging":
        with jax.enable_x64(True):
            assert lr.metrics.relative_error(namespace["solution"].factors, namespace["truth"]) < 1e-10


def public_names(name):
    """What a module offers: its `__all__`, or what it defines and what it imports as `from a import b as b`."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return set(module.__all__)
    names = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
    return {one for one in names if not one.startswith("_") and not inspect.ismodule(getattr(module, one))}


def documented_names():
    """Full names on the API page, from its directives."""
    found, module = set(), ""
    for directive, argument, options in re.findall(
        r"^\.\. (\w+):: (\S+)\n((?:   :.*\n)*)", (DOCS / "api.rst").read_text(), re.MULTILINE
    ):
        if directive in ("currentmodule", "automodule"):
            module = argument
        elif directive.startswith("auto"):
            found.add(f"{module}.{argument}")
        members = re.search(r":members:(.*)", options)
        if directive != "automodule" or not members:
            continue
        skipped = re.findall(r"\w+", "".join(re.findall(r":exclude-members:(.*)", options)))
        chosen = re.findall(r"\w+", members[1]) or public_names(module)
        own = lambda one, module=module: getattr(importlib.import_module(module), one).__module__ == module
        found |= {f"{module}.{one}" for one in chosen if one not in skipped and (":imported" in options or own(one))}
    return found


MODULES = [
    "lrjax",
    *("lrjax." + name for name in "operators losses sketching synthetic metrics diagnostics plot initial".split()),
    *("lrjax." + name for name in "step_sizes testing datasets status private".split()),
]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name):
    module, documented = importlib.import_module(name), documented_names()
    assert module.__doc__
    for one in public_names(name):
        thing = getattr(module, one)
        text = inspect.getdoc(thing)
        # A dataclass or named tuple without one is given its signature.
        assert text, f"{name}.{one} has no docstring"
        assert not text.startswith(f"{one}("), f"{name}.{one} has no docstring of its own"
        # A name offered in two places is documented in one of them.
        places = {f"{m}.{one}" for m in MODULES if getattr(importlib.import_module(m), one, None) is thing}
        assert places & documented, f"{name}.{one} is not on the API page"


def test_what_is_returned_is_not_taken_for_a_type():
    """Napoleon reads what stands before a colon in the first line as the return type."""
    for path in (Path(lr.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            for first in re.findall(r"^Returns:\n +(.*)$", ast.get_docstring(node) or "", re.MULTILINE):
                assert ":" not in re.sub(r":\w+:`.+?`|``.+?``", "", first), f"{path}: {node.name}: {first}"


def test_every_page_is_in_the_table_of_contents():
    listed = set((DOCS / "index.md").read_text().split())
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} <= listed
