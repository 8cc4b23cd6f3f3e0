"""The Atropos trajectory API over a table: its environments push here and its trainers pull here, unchanged.

Every table has it at /atropos/RUN/TABLE, which is what goes into a client's server URL.
"""

from fastapi import APIRouter, FastAPI

from groupreplay.errors import InvalidRequestError
from groupreplay_server.access import Access
from groupreplay_server.api.atropos.bodies import route_class
from groupreplay_server.api.atropos.environment_routes import EnvironmentRoutes
from groupreplay_server.api.atropos.tables import ServedTables
from groupreplay_server.api.atropos.trainer_routes import TrainerRoutes
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.limits import check_names
from groupreplay_server.readiness import Readiness
from groupreplay_server.service import ReplayService

PREFIX = "/atropos/{run}/{table}"


def include_atropos(
    app: FastAPI,
    service: ReplayService,
    readiness: Readiness,
    metrics: Metrics,
    access: Access,
    *,
    at_root: str = "",
) -> None:
    """Serve every table under its path, and one at the root where `at_root` names it (RUN/TABLE).

    Raises:
        OSError: at_root names no table that could be.
    """
    if at_root:
        run, _, table = at_root.partition("/")
        try:
            check_names(run, table)
        except InvalidRequestError as error:
            raise OSError(f"--atropos-table {at_root!r} is not RUN/TABLE, such as math/train: {error}") from error
    router = make_router(ServedTables(service, at_root), readiness, metrics, access)
    app.include_router(router, prefix=PREFIX)
    if at_root:
        app.include_router(router)


def make_router(tables: ServedTables, readiness: Readiness, metrics: Metrics, access: Access) -> APIRouter:
    """Return the 13 routes."""
    router = APIRouter(route_class=route_class(tables, readiness, metrics, access))
    trainer, environment = TrainerRoutes(tables, metrics), EnvironmentRoutes(tables, metrics)
    for path, method, call in (
        ("/", "GET", trainer.root),
        ("/register", "POST", trainer.register),
        ("/register-env", "POST", environment.register_env),
        ("/disconnect-env", "POST", environment.disconnect_env),
        ("/wandb_info", "GET", trainer.wandb_info),
        ("/info", "GET", trainer.info),
        ("/batch", "GET", trainer.batch),
        ("/latest_example", "GET", trainer.latest_example),
        ("/scored_data", "POST", environment.scored_data),
        ("/scored_data_list", "POST", environment.scored_data_list),
        ("/status", "GET", trainer.status),
        ("/status-env", "GET", environment.status_env),
        ("/reset_data", "GET", trainer.reset_data),
    ):
        router.add_api_route(path, call, methods=[method], response_model=None, include_in_schema=False)
    return router
