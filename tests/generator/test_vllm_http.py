"""What the engine of vLLM servers does when servers fail. tests/real_vllm tests it on a real vLLM."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from fastapi import Response
from generator.vllm_routes import Answer, VllmRoutes, no_json, nothing, serving, status_503

from groupreplay_generator.engines import EngineAwayError, EngineResult, Sampling
from groupreplay_generator.engines.vllm_http import VllmHttpEngine
from groupreplay_generator.sections import VllmSettings

SAMPLING = Sampling(max_response_tokens=4, seed=1)


@pytest.fixture
async def routes() -> AsyncIterator[VllmRoutes]:
    """A server without a model."""
    async with serving(VllmRoutes()) as routes:
        yield routes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    return make_folder(tmp_path / "policy-000004")


def make_folder(path: Path) -> Path:
    """Make a folder that looks like a model."""
    path.mkdir()
    (path / "config.json").touch()
    (path / "model.safetensors").touch()
    return path


def engine_of(folder: Path, *servers: VllmRoutes, timeout_s: float = 5.0) -> VllmHttpEngine:
    """Return an engine over servers, with weights of policy version 4."""
    settings = VllmSettings(url=",".join(server.url for server in servers), timeout_s=timeout_s)
    return VllmHttpEngine(folder, policy_version=4, label="four", settings=settings)


async def generate(engine: VllmHttpEngine, prompts: int = 3) -> list[EngineResult]:
    """Sample two rollouts of some prompts."""
    return await engine.generate(["1+1="] * prompts, rollouts_per_prompt=2, sampling=SAMPLING)


async def until_it_answers(engine: VllmHttpEngine, prompts: int = 3) -> list[EngineResult]:
    """Call again as the generator does, until the engine is back."""
    while True:
        try:
            return await generate(engine, prompts)
        except EngineAwayError:
            await asyncio.sleep(0.01)


async def test_a_server_is_given_the_weights_before_it_is_sampled_from(routes: VllmRoutes, folder: Path) -> None:
    """It is paused meanwhile, has no policy's label, and goes on with the new one."""
    async with engine_of(folder, routes) as engine:
        results = await generate(engine)
    assert routes.loaded == [str(folder)]
    assert (routes.label, routes.paused) == ("four", False)
    assert [(result.policy_version_min, result.policy_version_max) for result in results] == [(4, 4)] * 3
    assert results[0].completions[1].behaviour_logprobs.tolist() == [-0.5, -0.25, -0.125]


async def test_a_server_that_holds_the_weights_is_left_alone(routes: VllmRoutes, folder: Path) -> None:
    """The second call, and the engine of another generator, load nothing."""
    for _ in range(2):
        async with engine_of(folder, routes) as engine:
            await generate(engine)
            await generate(engine)
    assert len(routes.loaded) == 1


async def test_a_server_that_was_left_paused_is_woken(routes: VllmRoutes, folder: Path) -> None:
    """Whoever paused it may have died."""
    routes.label, routes.paused = "four", True
    async with engine_of(folder, routes) as engine:
        await generate(engine)
    assert not routes.paused


async def test_a_server_that_was_left_half_loaded_is_loaded_anew(routes: VllmRoutes, folder: Path) -> None:
    """A generator that dies in the middle of an update leaves nobody in doubt what the server holds."""
    async with engine_of(folder, routes) as engine:
        await generate(engine)
        routes.label, routes.paused = "loading five", True
        await generate(engine)
    assert (len(routes.loaded), routes.label, routes.paused) == (2, "four", False)


async def test_a_server_that_forgot_its_weights_is_given_them_again(routes: VllmRoutes, folder: Path) -> None:
    """A restarted server has the weights it was started with, and says so."""
    async with engine_of(folder, routes) as engine:
        await generate(engine)
        routes.label = "default"
        await generate(engine)
    assert routes.loaded == [str(folder)] * 2


async def test_tokens_of_weights_that_nobody_knows_are_not_used(routes: VllmRoutes, folder: Path) -> None:
    """A server that restarts between the check and the request gets its weights, and is asked again."""
    forgets = iter([True])

    def forget() -> None:
        if next(forgets, False):
            routes.label = "default"

    routes.on_sample = forget
    async with engine_of(folder, routes) as engine:
        with pytest.raises(EngineAwayError, match="tokens came from weights 'default'"):
            await generate(engine)
        results = await until_it_answers(engine)
    assert {result.policy_version_min for result in results} == {4}
    assert len(routes.loaded) == 2


@pytest.mark.parametrize("path", ["/collective_rpc", "/update_weight_version"])
async def test_a_failed_update_leaves_the_server_running(routes: VllmRoutes, folder: Path, path: str) -> None:
    """It is resumed in any case, for the sake of others; the engine samples nothing until it has the weights."""
    routes.failing[path] = status_503
    async with engine_of(folder, routes) as engine:
        with pytest.raises(EngineAwayError, match="503"):
            await generate(engine)
        assert not routes.paused
        assert not routes.bodies
        del routes.failing[path]
        await until_it_answers(engine)


async def test_weights_that_a_server_cannot_load_leave_the_engine_with_those_it_has(
    routes: VllmRoutes, folder: Path, tmp_path: Path
) -> None:
    """The error says what to look at, and the version before is sampled from again."""
    async with engine_of(folder, routes) as engine:
        await generate(engine)
        routes.failing["/collective_rpc"] = status_503
        with pytest.raises(ValueError, match=r"could not load .*policy-000005.*same path there"):
            await engine.load_weights(make_folder(tmp_path / "policy-000005"), 5)
        assert engine.policy_version == 4
        del routes.failing["/collective_rpc"]
        results = await until_it_answers(engine)
    assert {result.policy_version_max for result in results} == {4}


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/weight_info", status_503, "503"),
        ("/tokenize", no_json, "no JSON object: <html>"),
        ("/inference/v1/generate", status_503, "answers /inference/v1/generate with HTTP status 503"),
        ("/weight_info", nothing, "does not answer: ReadTimeout"),
        ("/tokenize", nothing, "does not answer: ReadTimeout"),
    ],
)
async def test_a_server_that_fails_is_away_and_comes_back(
    routes: VllmRoutes, folder: Path, path: str, answer: Answer, words: str
) -> None:
    """Whatever it answers, the call can be made again."""
    async with engine_of(folder, routes, timeout_s=0.3) as engine:
        await generate(engine)
        routes.failing[path] = answer
        with pytest.raises(EngineAwayError, match=words):
            await generate(engine)
        routes.failing.clear()
        assert len(await until_it_answers(engine)) == 3


async def test_a_server_that_hangs_in_the_middle_of_responses_is_noticed(routes: VllmRoutes, folder: Path) -> None:
    """Responses may take an hour, but a server that gives no sign of life for timeout_s is given up."""

    async def hang_from_now_on() -> Response:
        routes.failing["/weight_info"] = nothing
        return await nothing()

    async with engine_of(folder, routes, timeout_s=0.3) as engine:
        await generate(engine)
        routes.failing["/inference/v1/generate"] = hang_from_now_on
        with pytest.raises(EngineAwayError, match="does not answer"):
            await generate(engine)


async def test_nobody_there_is_said_with_the_address(folder: Path) -> None:
    """The message serves as the status of a producer."""
    async with serving(VllmRoutes()) as routes:
        pass
    async with engine_of(folder, routes) as engine:
        with pytest.raises(EngineAwayError, match=f"vLLM server at {routes.url} does not answer: .*[Cc]onnect"):
            await generate(engine)


async def test_an_absent_server_is_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried."""
    async with serving(VllmRoutes()) as routes:
        pass
    caplog.set_level(logging.INFO, "groupreplay_generator")
    async with engine_of(folder, routes) as engine:
        for server in engine._servers:
            for _ in range(3):
                server._retry_at = 0.0
                with pytest.raises(EngineAwayError):
                    await generate(engine)
    assert len(caplog.records) == 1


async def test_what_was_finished_before_a_server_failed_comes_with_the_error(routes: VllmRoutes, folder: Path) -> None:
    """It need not be sampled again."""
    asked = itertools.count()

    async def answer_two_of_three() -> Response:
        return routes.responses(rollouts=2) if next(asked) % 3 < 2 else await status_503()

    async with engine_of(folder, routes) as engine:
        await generate(engine)
        routes.failing["/inference/v1/generate"] = answer_two_of_three
        with pytest.raises(EngineAwayError) as caught:
            await engine.generate(["a", "bb", "ccc"], rollouts_per_prompt=2, sampling=SAMPLING)
    for index, result in caught.value.finished.items():
        assert (result.prompt_token_ids.size, len(result.completions)) == (index + 1, 2)


async def test_prompts_are_spread_over_servers_and_taken_over_from_one_that_fails(folder: Path) -> None:
    """The results are complete and in order; the failed server is used again when it is back."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(serving(VllmRoutes())) for _ in range(2)]
        engine = await stack.enter_async_context(engine_of(folder, first, second))
        await generate(engine, 6)
        assert (len(first.bodies), len(second.bodies)) == (3, 3)
        second.failing["/inference/v1/generate"] = status_503
        results = await engine.generate(["a", "bb", "ccc"], rollouts_per_prompt=1, sampling=SAMPLING)
        assert [result.prompt_token_ids.size for result in results] == [1, 2, 3]
        second.failing.clear()
        before = len(second.bodies)
        while len(second.bodies) == before:
            await generate(engine, 2)


async def test_a_server_without_the_route_of_spans_gives_the_versions_around_a_response(
    routes: VllmRoutes, folder: Path, tmp_path: Path
) -> None:
    """Where the weights changed meanwhile the tokens are of either, and that is what the result says."""
    routes.serves_spans = False
    async with engine_of(folder, routes) as engine:
        await engine.load_weights(make_folder(tmp_path / "policy-000006"), 6, label="six")
        await engine.load_weights(folder, 4, label="four")
        results = await generate(engine, 1)
        assert (results[0].policy_version_min, results[0].policy_version_max) == (4, 4)
        routes.on_sample = lambda: setattr(routes, "label", "six")
        results = await generate(engine, 1)
    assert (results[0].policy_version_min, results[0].policy_version_max) == (4, 6)
    assert results[0].completions[0].version_spans == ()


async def test_spans_say_which_token_is_of_which_version(routes: VllmRoutes, folder: Path) -> None:
    """Labels of weights that another generator brought in are looked up; a span of no token counts for nothing."""
    settings = VllmSettings(url=routes.url)
    engine = VllmHttpEngine(
        folder, policy_version=4, label="four", settings=settings, version_of={"eight": 8, "six": 6}.get
    )
    routes.spans = [
        {"version": "six", "start": 0, "end": 0},
        {"version": "four", "start": 0, "end": 2},
        {"version": "eight", "start": 2, "end": 3},
    ]
    async with engine:
        (result,) = await generate(engine, 1)
    assert result.completions[0].version_spans == ((0, 4), (2, 8))
    assert (result.policy_version_min, result.policy_version_max) == (4, 8)


async def test_a_server_that_reports_logprobs_of_another_distribution_is_refused(
    routes: VllmRoutes, folder: Path
) -> None:
    """At any temperature but 1 they would be wrong, without a sign of it in training."""
    routes.raw_logprobs = True
    async with engine_of(folder, routes) as engine:
        with pytest.raises(EngineAwayError, match="--logprobs-mode processed_logprobs"):
            await generate(engine)
    assert not routes.bodies


async def test_every_request_asks_for_the_whole_distribution(routes: VllmRoutes, folder: Path) -> None:
    """A model's generation_config.json would bring top-k, top-p and penalties in."""
    for routes.serves_spans in (True, False):
        async with engine_of(folder, routes) as engine:
            await generate(engine, 2)
    bodies = [body.get("sampling_params", body) for body in routes.bodies]
    assert all((body["top_p"], body["top_k"], body["min_p"]) == (1.0, -1, 0.0) for body in bodies)
    assert len({body["seed"] for body in bodies[:2]}) == 2
    assert len({body["cache_salt"] for body in routes.bodies}) == 1


async def test_a_response_that_vllm_aborted_is_asked_for_again(routes: VllmRoutes, folder: Path) -> None:
    """Nothing that vLLM cut off for its own reasons is trained on."""

    async def aborted() -> Response:
        return routes.responses(rollouts=2, finish_reason="abort")

    async with engine_of(folder, routes) as engine:
        routes.failing["/inference/v1/generate"] = aborted
        with pytest.raises(EngineAwayError, match="ended a response after 3 tokens with 'abort'"):
            await generate(engine)
        routes.failing.clear()
        await until_it_answers(engine)


async def test_the_api_key_is_sent(
    routes: VllmRoutes, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from a file or from the environment, never from the command line."""
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    for settings, key in (
        (VllmSettings(url=routes.url, api_key_file=tmp_path / "key"), "from-file"),
        (VllmSettings(url=routes.url), "from-environment"),
    ):
        async with VllmHttpEngine(folder, settings=settings) as engine:
            assert engine._client is not None
            assert engine._client.headers["Authorization"] == f"Bearer {key}"


async def test_images_are_refused_in_words(routes: VllmRoutes, folder: Path) -> None:
    """A policy that did not see them would be trained as if it had."""
    async with engine_of(folder, routes) as engine:
        with pytest.raises(ValueError, match="engine vllm-http shows no images"):
            await engine.generate(
                ["a"], rollouts_per_prompt=1, sampling=SAMPLING, images=[np.zeros((2, 2, 1), np.uint8)]
            )
    assert not routes.calls


async def test_an_engine_that_is_not_open_says_so(folder: Path) -> None:
    """Forgetting `async with` is explained."""
    engine = VllmHttpEngine(folder, settings=VllmSettings(url="http://127.0.0.1:1"))
    with pytest.raises(RuntimeError, match="not open"):
        await generate(engine)
