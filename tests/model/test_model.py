"""A table in a real Redis does what the model says, operation by operation."""

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from model.machine import TableMachine

from groupreplay import Fill, Sampler

EXAMPLES, STEPS = 8, 50
KINDS = [(fill, sampler) for fill in (Fill.REPLAY, Fill.SAMPLE) for sampler in Sampler]
KINDS += [(fill, Sampler.RECENCY) for fill in (Fill.NONE, Fill.RESAMPLE, Fill.KEEP)]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("fill", "sampler"), KINDS)
def test_a_table_in_redis_does_what_the_model_says(
    clean_redis: redis.Redis, redis_url: str, request: pytest.FixtureRequest, fill: Fill, sampler: Sampler
) -> None:
    """Thousands of operations on tables of any configuration: the same answers, and the same groups in the same place.

    17 kinds, 8 tables of each, up to 50 rules on each table, the same ones on every run.
    `make test ARGS="tests/model --model-examples 500"` tries as many other tables of each kind.
    A failure prints the shortest sequence of operations that leads to it.
    """
    machine = type("Machine", (TableMachine,), {"redis_url": redis_url, "fill": fill, "sampler": sampler})
    examples = request.config.getoption("--model-examples")
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples or EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not examples,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
