"""The process in which the library is called: reads (target, recipes) from a pipe and says what happened."""

import multiprocessing.connection
import os
import re
import sys
import tempfile
import traceback
import warnings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main(handle: int) -> None:
    import resource

    import jax

    from . import recipes, targets

    # A table of the declared shape, where only the entries should count, ends in a MemoryError rather than in swap.
    resource.setrlimit(resource.RLIMIT_DATA, (12 * 2**30, 12 * 2**30))
    pipe = multiprocessing.connection.Connection(handle)
    # Whoever waits begins to count again with each compilation.
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: pipe.send(("compiled", seconds)) if "backend_compile" in event else None
    )
    os.chdir(tempfile.mkdtemp(prefix="lrjax-fuzz-"))
    sys.stderr = open(os.devnull, "w")  # progress bars
    pipe.send(("ready", 0.0))
    calls = 0
    while True:
        try:
            name, given = pipe.recv()
        except EOFError:
            return
        calls += 1
        if calls % 300 == 0:  # each compiled program keeps memory maps
            jax.clear_caches()
            targets.traced_call.cache_clear()
        pipe.send(("done", judged(targets.TARGETS[name], given, recipes)))


def judged(target, given, recipes) -> tuple[str, str, str]:
    """(verdict, signature, text): "fine", "refused", or a finding with what tells it from others."""
    from lrjax.status import SolveError

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            problems = target.run(given)
        except ValueError as error:
            text = str(error)
            if type(error) is ValueError and any(word in text for word in target.words(given)):
                return "refused", "", text
            return "finding", f"unnamed refusal: {place(error)}", f"{type(error).__name__}: {text[:400]}"
        except SolveError as error:
            return "refused", "", str(error)
        except MemoryError as error:
            return "finding", f"MemoryError: {place(error)}", str(error)[:200]
        except Exception as error:
            return "finding", f"{type(error).__name__}: {place(error)}", str(error)[:400]
    if problems:
        return "finding", re.sub(r"[0-9.]+e?[+-]?[0-9]*", "#", problems[0]), "; ".join(problems)
    if seen:
        one = seen[0]
        return "finding", f"warning: {str(one.message)[:60]}", f"{one.category.__name__}: {str(one.message)[:300]}"
    return "fine", "", ""


def place(error: BaseException) -> str:
    """The innermost lines of the library on the way to an error, without numbers, which move."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}lrjax{os.sep}" in f.filename]
    names = [f"{f.filename.split(os.sep + 'lrjax' + os.sep)[-1]}:{f.name}" for f in frames[-2:]]
    return " > ".join(names) or "outside"


if __name__ == "__main__":
    main(int(sys.argv[1]))
