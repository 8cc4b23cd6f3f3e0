"""What admins did is written down, and no secret ever is."""

import asyncio
import json
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from security.conftest import ADMIN_TOKEN, LogIn, make_token

from groupreplay import AsyncClient, PermissionDeniedError, Scope, TableConfig, UnauthenticatedError, UnknownTableError
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.settings import ServerSettings


def lines(settings: ServerSettings) -> list[dict[str, Any]]:
    """Return what the file has."""
    assert settings.audit_log is not None
    return [json.loads(line) for line in settings.audit_log.read_text().splitlines()]


async def test_each_call_of_an_admin_is_one_line(
    admin: AsyncClient, log_in: LogIn, secured: RunningServer, settings: ServerSettings
) -> None:
    """Who, from where, what, about what, and how it ended; over both doors, and refused ones too."""
    await admin.create_table(run="math", table="train")
    secret = await make_token(admin, Scope.PRODUCER, name="generator-1")
    producer = await log_in(secret)
    with pytest.raises(PermissionDeniedError):
        await producer.reset_table(run="math", table="train")
    with pytest.raises(UnknownTableError):
        await admin.update_table(run="math", table="no", config=TableConfig())
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=f"http://{secured.http_address}", headers=headers) as http:
        assert (await http.post("/v1/runs/math/tables/train/reset", content=b"{}")).status_code == 200
        assert (await http.delete("/v1/tokens/generator-1")).status_code == 200
        other = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        assert (await http.put("/v1/runs/math/quota", content=b"{}", headers=other)).status_code == 401
    await admin.list_tables()  # no admin's call
    written = lines(settings)
    found = [(it["who"], it["door"], it["call"], it["outcome"], it.get("run"), it.get("table")) for it in written]
    root = "admin-token-file"
    assert found == [
        (root, "grpc", "CreateTable", "OK", "math", "train"),
        (root, "grpc", "CreateToken", "OK", None, None),
        ("generator-1", "grpc", "ResetTable", "PERMISSION_DENIED", None, None),
        (root, "grpc", "UpdateTable", "UNKNOWN_TABLE", "math", "no"),
        (root, "http", "ResetTable", "OK", "math", "train"),
        (root, "http", "RevokeToken", "OK", None, None),
    ]
    assert [it["name"] for it in written if "name" in it] == ["generator-1", "generator-1"]
    assert all(it["peer"].startswith(("ipv4:127.0.0.1:", "127.0.0.1:")) for it in written)
    assert all(it["time"].endswith("+00:00") for it in written)


async def test_a_caller_who_went_away_is_no_fault_of_the_service(
    secured: RunningServer, settings: ServerSettings
) -> None:
    """The trail says what the metrics say."""
    host, _, port = secured.http_address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"PUT /v1/runs/math/quota HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    async with asyncio.timeout(60):
        while not (written := await asyncio.to_thread(lines, settings)):
            pass
    assert [(it["call"], it["outcome"]) for it in written] == [("SetQuota", "CANCELLED")]


async def test_no_secret_is_logged(
    admin: AsyncClient, log_in: LogIn, settings: ServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the service, nor by what it is built on, at any level; nor shown by what holds it."""
    caplog.set_level(logging.DEBUG)
    secret = await make_token(admin, Scope.CONSUMER)
    client = await log_in(secret)
    await admin.create_table(run="math", table="train")
    with pytest.raises(PermissionDeniedError):
        await client.set_quota(run="math")
    with pytest.raises(UnauthenticatedError):
        await (await log_in(secret + "x")).list_tables()
    assert settings.audit_log is not None
    written = caplog.text + settings.audit_log.read_text() + repr(settings)
    for hidden in (ADMIN_TOKEN, secret, secret.rpartition(".")[2]):
        assert hidden not in written


async def test_the_audit_log_is_in_the_log_and_for_its_owner_only(
    admin: AsyncClient, settings: ServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever collects the log of the service has it without the file."""
    caplog.set_level(logging.INFO, "groupreplay.audit")
    await admin.create_table(run="math", table="train")
    [record] = [it for it in caplog.records if it.name == "groupreplay.audit"]
    assert json.loads(record.getMessage())["call"] == "CreateTable"
    assert settings.audit_log is not None
    assert stat.S_IMODE(settings.audit_log.stat().st_mode) == 0o600


async def test_a_file_that_logrotate_moved_is_opened_anew(admin: AsyncClient, settings: ServerSettings) -> None:
    """No line goes to a file that nobody reads any more, and the new one is its owner's alone, as the first was."""
    await admin.create_table(run="math", table="train")
    assert settings.audit_log is not None
    settings.audit_log.rename(settings.audit_log.with_suffix(".1"))
    await admin.reset_table(run="math", table="train")
    assert [it["call"] for it in lines(settings)] == ["ResetTable"]
    assert stat.S_IMODE(settings.audit_log.stat().st_mode) == 0o600


async def test_a_file_that_cannot_be_written_stops_the_start(
    clean_redis: redis.Redis, settings: ServerSettings, tmp_path: Path
) -> None:
    """A service that promises a trail does not run without."""
    with pytest.raises(OSError, match=r"--audit-log .*missing.* cannot be written"):
        async with running_server(replace(settings, audit_log=tmp_path / "missing" / "audit.jsonl")):
            pass
