"""What an open page costs: load with the calls of a page beside it, and without."""

from collections.abc import Mapping
from typing import Final

from groupreplay import TableConfig
from groupreplay_admin.load.jobs import Draw, InsertStream, Where
from groupreplay_admin.load.tally import together
from service.deployment import Deployment, Watch
from service.measured import Measured, measured
from service.open_page import OpenPage
from service.stage import Stage
from service.trials import CAPACITY, DRAWN, DRAWN_FROM, Trial, fill

_LEAST_S: Final = 6.0
"""Of a trial: three looks of the page."""


def insert_beside_page(shape: str, *, pages: int) -> Trial:
    """A producer that streams, while so many pages of its table are open."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        service, where = stage.empty_table(TableConfig(fresh_capacity=CAPACITY))
        return _beside(stage, service, InsertStream(where=where, seconds=_seconds(stage), shape=shape), pages)

    return trial


def draw_beside_page(shape: str, *, batch_size: int, pages: int) -> Trial:
    """A trainer that draws and commits, while so many pages of its table are open."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        service, where = stage.empty_table(DRAWN_FROM)
        fill(stage, where, shape, DRAWN[shape])
        job = Draw(where=where, seconds=_seconds(stage), call="sample", batch_size=batch_size)
        return _beside(stage, service, job, pages)

    return trial


def _seconds(stage: Stage) -> float:
    return max(_LEAST_S, stage.effort.seconds)


def _beside(stage: Stage, service: Deployment, job: InsertStream | Draw, pages: int) -> Measured:
    where: Where = job.where
    look = OpenPage(address=service.service.http_address, run_name=where.run, table=where.table, seconds=job.seconds)
    with Watch(service) as watch:
        worked, *_ = stage.run(job, *[look] * pages)
    return measured(together([worked]), watch)
