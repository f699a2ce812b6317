"""A fuzz of the public interface, the files and the command line.

Inputs are drawn as recipes (`recipes`), which print as code and cross to another process; `targets` says what is
called with them; a worker process (`worker`) calls it, so that a call that never returns can be killed; `harness`
judges what came back. `tests/test_fuzz.py` runs a small share; `python -m tests.fuzz --minutes 10` runs long.

What is checked, for every input drawn:

1. a refusal is a `ValueError` (on the command line: an exit code other than 0 and a text) that names an argument or
   the file: nothing else is raised, and nothing is warned about;
2. the call returns within a time limit, which starts again at each compilation;
3. what claims success holds neither NaN nor infinity where the input held none;
4. a command writes all of its files, or none.
"""
