"""The examples in docstrings and in the README run and say what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import lrjax

NAMES = ["lrjax"] + [
    info.name for info in pkgutil.walk_packages(lrjax.__path__, "lrjax.") if not info.name.endswith("__main__")
]
MODULES = {name: importlib.import_module(name) for name in NAMES}
WITH_EXAMPLES = [name for name, module in MODULES.items() if ">>>" in Path(module.__file__).read_text()]
README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE) if README.exists() else []


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstrings(name):
    result = doctest.testmod(MODULES[name])
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.skipif(not BLOCKS, reason="the README has no code")
def test_readme():
    """Its blocks run one after the other, in one namespace, as a reader would paste them."""
    namespace = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
