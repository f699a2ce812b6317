"""Settings that must be in place before JAX starts."""

import importlib.metadata
import os

import pytest

# Small LAPACK calls inside a loop spend their time in OpenBLAS's spinning threads otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Batched LAPACK calls that run at the same time can wait for each other's threads for ever where there are only two.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The command line would keep what the tests compile in the user's cache folder.
os.environ.setdefault("LRJAX_CACHE", "off")

# The tests compile far more than they compute. Turning off one code generator of XLA saves a third of that time; the
# flag is known to exist in these releases, and an unknown one would stop the process.
if importlib.metadata.version("jaxlib").startswith("0.10."):
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


@pytest.fixture
def x64():
    """Double precision for one test."""
    import jax

    with jax.enable_x64(True):
        yield
