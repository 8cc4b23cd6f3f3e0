"""No operation may become much more expensive than it was, counted rather than timed."""

import json

from service.costs import RECORDED, count_costs, losses


def test_no_operation_costs_a_quarter_more_than_recorded() -> None:
    """Python calls, Redis commands, bytes to Redis and memory of inserts and draws are near those recorded."""
    assert losses(count_costs(), json.loads(RECORDED.read_text())) == []


def test_a_loss_is_told_with_both_numbers() -> None:
    """A cost above the recorded one by less than a quarter passes."""
    recorded = {"insert: calls": 100.0, "draw: calls": 10.0}
    assert losses({"insert: calls": 124.0, "draw: calls": 9.0}, recorded) == []
    [loss] = losses({"insert: calls": 126.0, "draw: calls": 9.0}, recorded)
    assert loss.startswith("insert: calls: 126, recorded 100;")
