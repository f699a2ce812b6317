"""A small, fixed share of the fuzz of `tests/fuzz`: `make fuzz` runs the long one."""

import pytest
from fuzz.harness import Worker, printed
from fuzz.targets import TARGETS
from hypothesis import HealthCheck, Phase, given, settings


@pytest.fixture(scope="module")
def worker():
    with Worker() as one:
        yield one


@pytest.mark.parametrize("name", [name for name, one in TARGETS.items() if one.examples])
def test_inputs_are_answered_or_refused_by_name(name, worker):
    @settings(
        max_examples=TARGETS[name].examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name].strategy)
    def check(arguments):
        verdict = worker.call(name, arguments)
        assert verdict.kind != "finding", f"{verdict.signature}\n{printed(name, arguments)}\n{verdict.text}"

    check()
