"""Settings that must be in place before JAX starts."""

import importlib.metadata
import os
import tempfile

import pytest

# Small LAPACK calls inside a loop spend their time in OpenBLAS's spinning threads otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Batched LAPACK calls that run at the same time can wait for each other's threads for ever where there are only two.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The command line would keep what the tests compile in the user's cache folder.
os.environ.setdefault("LRJAX_CACHE", "off")

# Most tests compile far more than they compute: LLVM's optimisations take half of that time, and one code generator of
# XLA a third. Tests marked `computes` are optimised all the same. `LRJAX_TESTS_COMPILE=full` compiles everything as
# users do; the papers, which run beside the tests, always do. Other releases of JAX have neither setting.
LIGHT = os.environ.get("LRJAX_TESTS_COMPILE") != "full" and importlib.metadata.version("jaxlib").startswith("0.10.")
if LIGHT:
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

# Every compiled program keeps memory maps; some thousand tests in one process would run out of them (a process may have
# 65,530 on Linux), and XLA then crashes while compiling.
TESTS_BETWEEN_CLEARS = 100
_run = 0


def pytest_runtest_teardown():
    global _run
    _run += 1
    if _run % TESTS_BETWEEN_CLEARS == 0:
        import jax

        jax.clear_caches()


def pytest_configure(config):
    """One folder of compiled programs for all workers of this run, and for no other."""
    if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="lrjax-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
        config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True)
def optimised(request):
    """Tests that compute more than they compile, marked `computes`, run optimised code."""
    if not LIGHT or request.node.get_closest_marker("computes") is None:
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Double precision for one test."""
    import jax

    with jax.enable_x64(True):
        yield
