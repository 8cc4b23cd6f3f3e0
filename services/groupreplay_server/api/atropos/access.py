"""Who may call. Atropos' clients send no token of their own accord, but they send what their server URL holds:

    rollout_server_url = "http://any:TOKEN@host:8080/atropos/math/train"

aiohttp and requests make HTTP Basic of it, and keep it out of the path, hence out of logs.
"""

import base64
import binascii

from fastapi import Request


def token_of(request: Request) -> str | None:
    """Return the token that a call carries, as Bearer or as the password of Basic; None = none."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return decoded.partition(":")[2] or None


async def authorize(request: Request) -> None:
    """Let everybody in; every route depends on this."""
