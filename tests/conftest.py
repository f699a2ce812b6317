"""Settings that must be in place before JAX starts."""

import os

# Small LAPACK calls inside a loop spend their time in OpenBLAS's spinning threads otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
