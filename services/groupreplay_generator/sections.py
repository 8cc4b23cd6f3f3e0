"""The sections of the generator's and the evaluator's settings. Imports no engine, so that `--help` is quick."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from groupreplay.errors import InvalidRequestError

ENGINES = ("torch", "vllm", "vllm-http")

_HTTP_ONLY = frozenset(
    {"url", "model", "api_key_file", "api_key_variable", "timeout_s", "response_timeout_s", "load_timeout_s"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """The vLLM that samples: servers of yours (engine vllm-http), or one in this process (engine vllm).

    Raises:
        InvalidRequestError: a number is out of range, a URL is no http URL, or the options are no JSON object.
    """

    url: str = ""
    """vllm-http: address of the server, http://HOST:PORT; of several, comma separated, each gets a share of the
    prompts."""
    model: str = ""
    """vllm-http: name that the servers give the model. Default: the first that they list."""
    api_key_file: Path | None = None
    """vllm-http: file with the API key, read at the start."""
    api_key_variable: str = "VLLM_API_KEY"
    """vllm-http: environment variable with the API key, read where there is no file. Unset = no key is sent."""
    timeout_s: float = 30.0
    """vllm-http: seconds after which a server that says nothing is taken for dead. Must exceed its longest step."""
    response_timeout_s: float = 3600.0
    """vllm-http: seconds until the responses to one prompt are given up, and sampled anew."""
    load_timeout_s: float = 600.0
    """vllm-http: seconds that a server may take to read new weights."""
    options: str = ""
    """vllm: more arguments of vLLM's AsyncEngineArgs, as a JSON object: '{"max_model_len": 4096}'."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "response_timeout_s", "load_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidRequestError(f"vllm.{name} {getattr(self, name)} must be finite and above 0")
        for url in self.urls:
            if urlparse(url).scheme not in {"http", "https"} or not urlparse(url).hostname:
                raise InvalidRequestError(f"vllm.url {url!r} is not of the form http://HOST:PORT")
        self.engine_arguments()

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers, none of them twice, without a slash at the end."""
        return tuple(dict.fromkeys(url.strip().rstrip("/") for url in self.url.split(",") if url.strip()))

    def engine_arguments(self) -> dict[str, Any]:
        """Return the options as keyword arguments of AsyncEngineArgs."""
        try:
            arguments = json.loads(self.options or "{}")
        except ValueError as error:
            raise InvalidRequestError(f"vllm.options {self.options!r} are not JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise InvalidRequestError(f"vllm.options {self.options!r} are not a JSON object")
        return arguments

    def api_key(self) -> str:
        """Return the API key; empty = none.

        Raises:
            OSError: the file cannot be read.
        """
        if self.api_key_file is not None:
            return self.api_key_file.read_text().strip()
        return os.environ.get(self.api_key_variable, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Where the generator can be watched.

    Raises:
        InvalidRequestError: the address is not host:port.
    """

    listen: str | None = None
    """host:port at which Prometheus finds /metrics; port 0 takes a free one. Off by default."""

    def __post_init__(self) -> None:
        if self.listen is not None:
            host, _, port = self.listen.rpartition(":")
            if not (host and port.isdecimal() and int(port) < 65536):
                raise InvalidRequestError(
                    f"metrics.listen {self.listen!r} is not host:port, for example 127.0.0.1:9102"
                )


def check_engine(engine: str, vllm: VllmSettings, *, threads: int | None) -> None:
    """Raise InvalidRequestError for an engine that is not there, or settings that it would not read."""
    if engine not in ENGINES:
        raise InvalidRequestError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if engine == "vllm-http" and not vllm.urls:
        raise InvalidRequestError("engine vllm-http needs vllm.url, the address of a vLLM server: http://HOST:PORT")
    if threads is not None and engine != "torch":
        raise InvalidRequestError(f"threads is read by engine torch, not by {engine}")
    for field in fields(vllm):
        reader = "vllm-http" if field.name in _HTTP_ONLY else "vllm"
        if engine != reader and getattr(vllm, field.name) != field.default:
            raise InvalidRequestError(f"vllm.{field.name} is read by engine {reader}, not by {engine}")
