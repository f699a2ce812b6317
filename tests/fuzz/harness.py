"""The other end of the worker's pipe: hands out calls, kills what does not return, keeps what was found."""

import dataclasses
import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 60.0
START = 120.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    kind: str  # "fine", "refused" or "finding"
    signature: str = ""
    text: str = ""


class Worker:
    """One process that calls targets. It is started again after it had to be killed, or died."""

    def __init__(self, limit: float = LIMIT):
        self.limit, self.process, self.pipe = limit, None, None

    def start(self) -> None:
        self.pipe, child = multiprocessing.Pipe()
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
        # As in tests/conftest.py: less time to compile. An unknown flag would stop the process.
        flags = os.environ.get("XLA_FLAGS", "")
        if importlib.metadata.version("jaxlib").startswith("0.10.") and "fusion_emitters" not in flags:
            flags += " --xla_cpu_use_fusion_emitters=false"
        # By the name of this package here, `fuzz` or `tests.fuzz`, or the recipes would be of other classes there.
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", str(child.fileno())],
            pass_fds=[child.fileno()],
            cwd=root,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "default", "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
        )
        child.close()
        if not self.pipe.poll(START):
            raise RuntimeError("the worker did not start")
        self.pipe.recv()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.pipe.close()
            self.process = None

    def call(self, target: str, given: dict[str, Any]) -> Verdict:
        if self.process is None:
            self.start()
        self.pipe.send((target, given))
        while True:
            if not self.pipe.poll(self.limit):
                self.stop()
                return Verdict("finding", f"hang: {target}", f"did not return within {self.limit:g} s")
            try:
                message = self.pipe.recv()
            except EOFError:
                code = self.process.wait()
                self.stop()
                return Verdict("finding", f"died: {target}", f"the process ended with code {code}")
            if message[0] == "done":
                return Verdict(*message[1])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


def printed(target: str, given: dict[str, Any]) -> str:
    return f"{target}({', '.join(f'{name}={value!r}' for name, value in given.items())})"
