"""What access and an open page cost is measured with services that ask for it."""

import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from cli.in_process import IN_PROCESS

from groupreplay import Client, GroupReplayError, TableConfig
from groupreplay_admin.load.jobs import Draw
from service.access import Access
from service.deployment import Deployment
from service.open_page import OpenPage
from service.page_trials import draw_beside_page
from service.stage import Effort, Stage
from service.trials import draw, fill, insert_stream

pytestmark = IN_PROCESS
EFFORT = Effort(seconds=0.2, rounds=1)


def calls_of(service: Deployment) -> dict[str, int]:
    """Return how often each call of the page was made, by the service's own metrics."""
    with urlopen(f"http://{service.service.http_address}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^groupreplay_call_seconds_count{.*(Diagnose|GetPolicy|GetTableHistory)".*} (\d+)', text, re.M)
    return {name: int(count) for name, count in found}


@pytest.mark.parametrize("access", ["tls", "tokens"])
def test_producers_and_trainers_get_in_and_nobody_else(tmp_path: Path, access: Access) -> None:
    """The trials of TLS and of tokens are of a service that refuses those who come without."""
    with Stage(tmp_path, EFFORT) as stage:
        assert insert_stream("S", access=access)(stage, {})["groups"] > 0
        assert draw("S", batch_size=8, access=access)(stage, {})["groups"] > 0
        service = stage.deployment(access=access)
        with Client(service.address, timeout_s=2.0) as stranger, pytest.raises(GroupReplayError):
            stranger.list_tables()


def test_an_open_page_asks_what_the_page_asks(tmp_path: Path) -> None:
    """Every two seconds, the first time after one; the service counts the calls."""
    with Stage(tmp_path, EFFORT) as stage:
        service, where = stage.empty_table(TableConfig())
        fill(stage, where, "tiny", 40)
        stage.run(Draw(where=where, seconds=60.0, call="next_batch", batch_size=8))
        page = OpenPage(address=service.service.http_address, run_name=where.run, table=where.table, seconds=2.0)
        [looked] = stage.run(page)
        assert len(looked.latencies_s) == 1
        assert calls_of(service) == {"GetTableHistory": 2, "GetPolicy": 2, "Diagnose": 2}  # one look before the start


@pytest.mark.slow
def test_the_calls_of_a_page_go_on_beside_a_trainer(tmp_path: Path) -> None:
    """A trial of a page has six seconds at least, hence three looks."""
    with Stage(tmp_path, EFFORT) as stage:
        assert draw_beside_page("S", batch_size=8, pages=1)(stage, {})["groups"] > 0
        assert calls_of(stage.deployment())["Diagnose"] == 4
