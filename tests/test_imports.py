"""The layering of the library, read from its source; what `import lrjax` loads; that what is public is documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lrjax

ROOT = Path(lrjax.__file__).parent
MAX_LINES = 450

# From the top down: a module may import modules of lower layers only, or of its own.
LAYERS = (
    ("__main__", "cli"),
    ("__init__",),
    ("completion",),
    ("models", "private", "synthetic", "datasets", "metrics", "diagnostics", "plot", "testing", "sweeps"),
    ("solvers",),
    ("iteration", "initial", "step_sizes", "sketching"),
    ("problems",),
    ("operators", "losses"),
    ("linalg",),
    ("core", "status"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Not for the library itself: it must work without them.
OUTSIDE = {"testing", "papers", "benchmarks", "tests", "examples"}


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts)] = path
    return names


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Dotted modules that a file imports, wherever in it the statement stands; `from a import b` as `a.b` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _inside(path: Path) -> set[str]:
    """Modules of the library that a file imports, as `part` or `part.file`."""
    found = set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "lrjax" or len(parts) == 1:
            continue
        part = parts[1:]
        while part and ".".join(part) not in MODULES and ".".join([*part, "__init__"]) not in MODULES:
            part = part[:-1]
        found.add(".".join(part) or "__init__")
    return found


def test_the_table_knows_every_module():
    assert {name.split(".")[0] for name in MODULES} <= set(LEVEL), "a new module needs a place in LAYERS"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_arrows_run_one_way(name):
    own = name.split(".")[0]
    for other in _inside(MODULES[name]):
        part = other.split(".")[0]
        assert LEVEL[part] >= LEVEL[own], f"{name} imports {other}, which stands above it"
        assert part not in OUTSIDE or own == part, f"{name} imports {other}"


def test_no_cycles():
    """Within a layer too: following imports never comes back."""
    edges = {name: {other for other in _inside(path) if other in MODULES} for name, path in MODULES.items()}
    done: set[str] = set()

    def follow(name, trail):
        assert name not in trail, f"imports run in a circle: {[*trail, name]}"
        if name in done:
            return
        for other in edges[name]:
            follow(other, [*trail, name])
        done.add(name)

    for name in edges:
        follow(name, [])


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_what_is_outside(name):
    for other in _imports(MODULES[name]):
        parts = other.split(".")
        assert parts[0] not in OUTSIDE, f"{name} imports {other}"
        assert name == "__init__" or parts[:2] != ["lrjax", "testing"], f"{name} imports {other}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("solvers.") and n != "solvers.__init__"])
def test_solvers_know_no_other_solver(name):
    allowed = {"solvers.base", "solvers", "iteration.protocol", name}
    if name == "solvers.wrappers":
        allowed |= {"iteration", "iteration.loop"}
    for other in _inside(MODULES[name]):
        assert other in allowed or other.split(".")[0] not in ("solvers", "iteration"), f"{name} imports {other}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("solvers.")])
def test_solvers_know_operators_by_their_contract(name):
    assert not any(other.split(".")[0] == "operators" for other in _inside(MODULES[name]))


@pytest.mark.parametrize("name", MODULES)
def test_files_stay_readable(name):
    assert len(MODULES[name].read_text().splitlines()) <= MAX_LINES


def test_import_is_light():
    heavy = {"flax", "matplotlib", "pandas", "scipy", "xarray"}
    code = f"import sys, lrjax; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    # jax itself loads scipy; what counts is that this library adds nothing.
    code = "import sys, jax, optax, tqdm; import jax.scipy.linalg; " + code.split("lrjax; ")[1]
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert set(out.stdout.split()) <= set(without.stdout.split()) & {"scipy"}


# --- docstrings ------------------------------------------------------------------------------------------------------

# What the operator contract of `operators.base` describes once for all.
CONTRACT = {
    "arrange",
    "solve_left",
    "solve_right",
    "fewest_entries",
    "coupled_parts",
    "couple",
    "shape",
    "num_measurements",
    "measured",
    "forward",
    "forward_dense",
    "adjoint",
    "adjoint_matmul",
    "adjoint_rmatmul",
    "symmetric_adjoint_matmul",
    "reference",
    "size",
}


def _public_modules():
    for info in pkgutil.walk_packages([str(ROOT)], "lrjax."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield info.name


def _undocumented(module):
    if not inspect.getdoc(module):
        yield "the module itself"
    for name, item in vars(module).items():
        if name.startswith("_") or getattr(item, "__module__", None) != module.__name__:
            continue
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        if not inspect.getdoc(item) or inspect.getdoc(item).startswith(f"{name}("):
            yield name
        if inspect.isclass(item):
            for part, member in vars(item).items():
                member = getattr(member, "__func__", getattr(member, "fget", member))
                if part.startswith("_") or part in CONTRACT or not inspect.isfunction(member):
                    continue
                if not member.__doc__:
                    yield f"{name}.{part}"


@pytest.mark.parametrize("name", list(_public_modules()))
def test_what_is_public_is_documented(name):
    assert not list(_undocumented(importlib.import_module(name)))


def test_every_public_name_is_documented():
    names = [name for name in vars(lrjax) if not name.startswith("_")]
    missing = [name for name in names if not inspect.getdoc(getattr(lrjax, name))]
    # A dataclass without a docstring gets its signature for one.
    missing += [name for name in names if (inspect.getdoc(getattr(lrjax, name)) or "").startswith(f"{name}(")]
    assert not missing
