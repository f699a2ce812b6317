"""The Python snippets of the documentation run, page by page, after those of the front page."""

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
