"""Settings of the generator that cannot work are refused before anything starts."""

from pathlib import Path

import pytest

from groupreplay import InvalidRequestError
from groupreplay_generator.sections import VllmSettings
from groupreplay_generator.settings import EvaluatorSettings, GeneratorSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "tgi"}, "unknown engine 'tgi'; known: torch, vllm, vllm-http"),
        ({"engine": "vllm-http"}, "engine vllm-http needs vllm.url"),
        ({"vllm": VllmSettings(url="http://a:1")}, "vllm.url is read by engine vllm-http, not by torch"),
        ({"vllm": VllmSettings(options='{"a": 1}')}, "vllm.options is read by engine vllm, not by torch"),
        (
            {"engine": "vllm", "vllm": VllmSettings(api_key_file=Path("k"))},
            "vllm.api_key_file is read by engine vllm-h",
        ),
        ({"engine": "vllm", "threads": 2}, "threads is read by engine torch, not by vllm"),
    ],
)
@pytest.mark.parametrize("kind", [GeneratorSettings, EvaluatorSettings])
def test_settings_that_the_engine_does_not_read_are_refused(
    kind: type[GeneratorSettings | EvaluatorSettings], values: dict[str, object], message: str
) -> None:
    """A setting that nobody reads is a mistake; the error says who would."""
    with pytest.raises(InvalidRequestError, match=message):
        kind(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "localhost:8000"}, "'localhost:8000' is not of the form http://HOST:PORT"),
        ({"url": "http://a:1,ftp://b"}, "'ftp://b' is not"),
        ({"timeout_s": 0}, "vllm.timeout_s 0 must be finite and above 0"),
        ({"options": "max_model_len=1"}, "are not JSON"),
        ({"options": "[1]"}, "are not a JSON object"),
    ],
)
def test_settings_of_vllm_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    """The error names the setting and its value."""
    with pytest.raises(InvalidRequestError, match=message):
        VllmSettings(**values)  # type: ignore[arg-type]


def test_several_servers_are_separated_by_commas() -> None:
    """Spaces and slashes at the end do no harm, and a server named twice is one."""
    assert VllmSettings(url="http://a:1/, http://b:2,http://a:1").urls == ("http://a:1", "http://b:2")
