"""The command line's compilation cache: compiled programs are kept between runs, by JAX's own persistent cache.

The library itself leaves JAX's global settings alone.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

VARIABLE = "LRJAX_CACHE"
OFF = ("off", "0", "no", "false", "none")


def chosen_folder(given: str | None) -> Path | None:
    """Where compiled programs are kept: what is given, else `LRJAX_CACHE`, else the user's cache folder.

    `None` where that says `off`, and where JAX has its own cache already.
    """
    named = given if given is not None else os.environ.get(VARIABLE) or None
    if named is not None:
        return None if named.lower() in OFF else Path(named).expanduser()
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return None
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "lrjax" / "programs"


@contextlib.contextmanager
def kept_programs(folder: Path | None) -> Iterator[None]:
    """Inside, what is compiled is looked for in `folder` first, and kept there.

    A folder that cannot be written to, or whose contents are damaged, costs one line on the standard error stream and
    nothing else. JAX's settings are as before afterwards.
    """
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            print(f"lrjax: compiled programs are not kept: {folder}: {error.strerror}", file=sys.stderr)
            folder = None
    if folder is None:
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    show, told = warnings.showwarning, []

    def show_once(message: Any, *rest: Any, **more: Any) -> None:
        if "persistent compilation cache" not in str(message):
            show(message, *rest, **more)
        elif not told:
            told.append(message)
            print(f"lrjax: {folder} is damaged or full; what is wrong is compiled anew", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*persistent compilation cache")
        warnings.showwarning = show_once
        try:
            _set(settings)
            yield
        finally:
            _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX holds on to the cache that it opened first.
    compilation_cache.reset_cache()
