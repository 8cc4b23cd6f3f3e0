"""Who may call what. Atropos' clients send no token of their own accord, but they send what their server URL holds:

    rollout_server_url = "http://any:TOKEN@host:8080/atropos/math/train"

aiohttp and requests make HTTP Basic of it, and keep it out of the path, hence out of logs.
"""

import base64
import binascii
from typing import Final

RPC_OF: Final = {
    "root": "DescribeTable",
    "register": "CreateTable",
    "register_env": "Beat",
    "disconnect_env": "Beat",
    "wandb_info": "DescribeTable",
    "info": "DescribeTable",
    "batch": "NextBatch",
    "latest_example": "GetGroups",
    "scored_data": "Insert",
    "scored_data_list": "Insert",
    "status": "DescribeTable",
    "status_env": "Beat",
    "reset_data": "ResetTable",
}
"""Route -> the RPC whose scope it asks for. Pushing makes the table where there is none, as in their server."""


def authorization_of(path: str, authorization: str) -> str:
    """Return an authorization header with Basic turned into Bearer, on a path of this API.

    Not on others: a browser that once opened a URL with a token in it goes on sending Basic by itself.
    """
    kind, _, value = authorization.partition(" ")
    if kind.lower() != "basic" or not is_served(path):
        return authorization
    try:
        decoded = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return f"Bearer {decoded.partition(':')[2]}"


def is_served(path: str) -> bool:
    """Whether a path is of this API, at the root or under a table."""
    return path.startswith("/atropos/") or path in ROOT_PATHS


def route_name(path: str, *, at_root: bool) -> str:
    """Return the name of the route that a path leads to; empty = to none. at_root: the paths of ROOT_PATHS do too."""
    first, *rest = path.removeprefix("/").split("/", 3)
    if first == "atropos" and len(rest) == len(("run", "table", "route")):
        path = f"/{rest[-1]}"
    elif not at_root:
        return ""
    return (path[1:].replace("-", "_") or "root") if path in ROOT_PATHS else ""


ROOT_PATHS: Final = frozenset(
    {
        "/", "/register", "/register-env", "/disconnect-env", "/wandb_info", "/info", "/batch", "/latest_example",
        "/scored_data", "/scored_data_list", "/status", "/status-env", "/reset_data",
    }
)  # fmt: skip
