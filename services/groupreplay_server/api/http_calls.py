"""By which name metrics know an HTTP request that is refused before a route has it."""

import re

from groupreplay_server.api.atropos.access import route_name
from groupreplay_server.api.metrics import UNKNOWN
from groupreplay_server.api.rest.routes import ROUTES

METRICS = "/metrics"
DOCUMENT = "/openapi.json"
_OTHERS = {METRICS: "Metrics", DOCUMENT: "OpenApi"}
_PATHS = [(route.verb, re.compile(re.sub(r"\{\w+\}", "[^/]*", route.path)), route.rpc) for route in ROUTES]


def call_name(verb: str, path: str, *, atropos_at_root: bool) -> str:
    """Return the RPC of a REST route, Atropos.NAME, Metrics or OpenApi; UNKNOWN for whatever else is asked for."""
    if path in _OTHERS:
        return _OTHERS[path]
    if name := route_name(path, at_root=atropos_at_root):
        return f"Atropos.{name}"
    return next((rpc for wanted, pattern, rpc in _PATHS if wanted == verb and pattern.fullmatch(path)), UNKNOWN)
