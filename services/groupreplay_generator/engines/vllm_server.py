"""One vLLM server, spoken to over HTTP: its weights, and the responses to one prompt.

Weights change through the routes of vLLM's dev mode. While they do, the server is paused and has a label that begins
with LOADING, so that no token is ever taken for one of weights that it was not sampled with, whoever dies in between.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import httpx

from groupreplay_generator.engines.base import EngineAwayError, EngineResult, Sampling
from groupreplay_generator.engines.vllm_weights import (
    LOADING,
    Versions,
    Weights,
    check_prompt,
    completion_of,
    result_of,
    rollouts_to_ask,
)
from groupreplay_generator.sections import VllmSettings

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Until an absent server is tried again, by how often it was tried."""

_NEUTRAL: Final = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Said in every request, because a model's generation_config.json changes the defaults."""

_SAME_LOGPROB: Final = 0.05
"""Above what rounding in bfloat16 changes, below what a temperature of 2 in place of 1 does."""
_PROBE: Final = "The"


class VllmServer:
    """A vLLM server that may be away, come back, and have forgotten its weights meanwhile."""

    def __init__(self, url: str, *, client: httpx.AsyncClient, settings: VllmSettings, versions: Versions) -> None:
        """Remember where it is; nothing is asked yet."""
        self.url = url
        self.trouble = ""
        """Why it cannot be used now, for logs; empty = it can."""
        self.refused = ""
        """Label of weights that it failed to load, last."""
        self._client = client
        self._settings = settings
        self._versions = versions
        self._model = settings.model
        self._checked = False
        self._says_spans = True
        self._tries = 0
        self._retry_at = 0.0
        self._updating = asyncio.Lock()

    @property
    def due(self) -> bool:
        """Whether it is there, or it is time to try it again."""
        return time.monotonic() >= self._retry_at

    def note_away(self, error: Exception) -> None:
        """Take note that it cannot be used, and ask everything anew when it is back: it may have been started anew."""
        if not self.trouble:
            _log.warning("%s; trying on", error)
        self.trouble = str(error)
        self._retry_at = time.monotonic() + RETRY_AFTER_S[min(self._tries, len(RETRY_AFTER_S) - 1)]
        self._tries += 1
        self._checked, self._says_spans = False, True

    def note_back(self) -> None:
        """Take note that it can be used."""
        if self.trouble:
            _log.info("vLLM server at %s is back", self.url)
        self.trouble, self._tries, self._retry_at = "", 0, 0.0

    async def make_ready(self, weights: Weights) -> None:
        """Bring `weights` into it unless it holds them, and check that it reports what a trainer needs.

        Raises:
            EngineAwayError: it does not answer, or was started without something that is needed.
            ValueError: it refuses one of these requests.
        """
        async with self._updating:
            label = await self._label()
            if label != weights.label:
                await self._load(weights)
            elif (await self._ask("GET", "/is_paused")).get("is_paused"):
                # Whoever paused it is gone, or about to change its label: tokens until then are told apart by that.
                await self._ask("POST", "/resume")
            if not self._checked:
                await self._check()
            self._checked = True

    async def watch(self) -> NoReturn:
        """Ask for a sign of life again and again.

        Raises:
            EngineAwayError: there was none for timeout_s.
        """
        while True:
            await asyncio.sleep(self._settings.timeout_s / 2)
            async with self._updating:
                await self._label()

    async def encode(self, prompt: str, sampling: Sampling) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            ValueError: it is empty, or leaves no room for the response.
            EngineAwayError: the server does not answer.
        """
        answer = await self._ask("POST", "/tokenize", json={"model": self._model, "prompt": prompt})
        token_ids: list[int] = self._field(answer, "tokens")
        check_prompt(prompt, len(token_ids), sampling, self._field(answer, "max_model_len"))
        return token_ids

    async def sample(
        self, token_ids: list[int], *, rollouts: int, sampling: Sampling, seed: int | None, salt: str
    ) -> EngineResult:
        """Sample the responses to the tokens of one prompt.

        Args:
            salt: as of `Weights.salt`.

        Raises:
            ValueError: the server refuses the sampling.
            EngineAwayError: the server does not answer, gave up, or sampled with weights that nobody knows.
        """
        parameters = {
            "n": rollouts_to_ask(sampling, rollouts),
            "max_tokens": sampling.max_response_tokens,
            "temperature": sampling.temperature,
            "seed": seed,
            "logprobs": 0,
            **_NEUTRAL,
        }
        try:
            if self._says_spans:
                result = await self._sample_with_spans(token_ids, parameters, rollouts, salt)
                if result is not None:
                    return result
                self._says_spans = False
            return await self._sample_plainly(token_ids, parameters, rollouts, salt)
        except (KeyError, TypeError, IndexError) as error:
            raise EngineAwayError(f"vLLM server at {self.url} gave an answer of another form: {error!r}") from error

    async def _sample_with_spans(
        self, token_ids: list[int], parameters: Mapping[str, Any], rollouts: int, salt: str
    ) -> EngineResult | None:
        """Sample by the route that says which weights sampled which token; return None where it is not served."""
        body = {
            "model": self._model, "token_ids": token_ids, "sampling_params": parameters, "output_mode": "text",
            "cache_salt": salt,
        }  # fmt: skip
        response = await self._send(
            "POST", "/inference/v1/generate", json=body, timeout_s=self._settings.response_timeout_s
        )
        if response.status_code in {403, 404}:
            return None
        choices = self._field(self._read(response), "choices")
        if not all(choice.get("weight_versions") for choice in choices):
            return None
        completions = [
            completion_of(
                token_ids=choice["token_ids"],
                logprobs=[token["logprob"] for token in choice["logprobs"]["content"]],
                finish_reason=choice["finish_reason"],
                text=choice["text"],
                temperature=parameters["temperature"],
                version_spans=self._versions.spans(
                    [(span["start"], span["version"]) for span in choice["weight_versions"]]
                ),
            )
            for choice in choices
        ]
        return result_of(token_ids, completions, rollouts=rollouts)

    async def _sample_plainly(
        self, token_ids: list[int], parameters: Mapping[str, Any], rollouts: int, salt: str
    ) -> EngineResult:
        """Sample by the route that every server has; its tokens are of the weights before, after, or between."""
        body = {
            "model": self._model, "prompt": token_ids, "return_token_ids": True, "cache_salt": salt, **parameters
        }  # fmt: skip
        before = await self._label()
        answer = await self._ask("POST", "/v1/completions", json=body, timeout_s=self._settings.response_timeout_s)
        after = await self._label()
        versions = [self._versions.find(label) for label in (before, after)]
        completions = [
            completion_of(
                token_ids=choice["token_ids"],
                logprobs=choice["logprobs"]["token_logprobs"],
                finish_reason=choice["finish_reason"],
                text=choice["text"],
                temperature=parameters["temperature"],
            )
            for choice in self._field(answer, "choices")
        ]
        return result_of(token_ids, completions, rollouts=rollouts, versions=versions)

    async def _load(self, weights: Weights) -> None:
        """Replace its weights between two tokens; requests under way go on with the new ones."""
        _log.info("vLLM server at %s loads policy version %d", self.url, weights.version)
        self.refused = ""
        await self._ask("POST", "/pause", params={"mode": "keep"})
        try:
            await self._ask("POST", "/update_weight_version", json={"new_version": f"{LOADING}{weights.label}"})
            response = await self._send(
                "POST",
                "/collective_rpc",
                json={"method": "reload_weights", "kwargs": {"weights_path": str(weights.path)}},
                timeout_s=self._settings.load_timeout_s,
            )
            if response.is_error:
                self.refused = weights.label
                raise EngineAwayError(
                    f"vLLM server at {self.url} could not load {weights.path}: {_explain(response)}; "
                    "the folder must be the same path there, and its model of the server's kind and shape"
                )
            await self._ask("POST", "/update_weight_version", json={"new_version": weights.label})
        finally:
            with contextlib.suppress(EngineAwayError):
                await asyncio.shield(self._ask("POST", "/resume"))

    async def _check(self) -> None:
        """Find the model's name, and check that log probabilities are those of the distribution that is sampled.

        Raises:
            EngineAwayError: they are not.
        """
        if not self._settings.model:
            models = self._field(await self._ask("GET", "/v1/models"), "data")
            self._model = models[0]["id"] if models else ""
        flat, sharp = await self._best_logprob(temperature=2.0), await self._best_logprob(temperature=1.0)
        # A policy that is certain of its next token is so at every temperature.
        if sharp > _SAME_LOGPROB or (sharp < -_SAME_LOGPROB and flat > sharp - _SAME_LOGPROB):
            raise EngineAwayError(
                f"vLLM server at {self.url} does not report the log probabilities of what it samples from: the best "
                f"token after {_PROBE!r} has {flat:.3f} at temperature 2 and {sharp:.3f} at 1; start it with "
                "--logprobs-mode processed_logprobs"
            )

    async def _best_logprob(self, *, temperature: float) -> float:
        """Return the log probability that it reports of the most likely token after a short prompt."""
        body = {"model": self._model, "prompt": _PROBE, "max_tokens": 1, "temperature": temperature, "logprobs": 1}
        answer = await self._ask("POST", "/v1/completions", json=body | _NEUTRAL)
        try:
            return float(max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise EngineAwayError(f"vLLM server at {self.url} reports no log probabilities: {error!r}") from error

    async def _label(self) -> str:
        """Return what it calls the weights it holds."""
        return str(self._field(await self._ask("GET", "/weight_info"), "weight_version"))

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the JSON object of the answer; raise what `_read` and `_send` raise."""
        return self._read(await self._send(method, path, **request))

    async def _send(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float | None = None,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request.

        Raises:
            EngineAwayError: there is no answer.
        """
        timeout = httpx.Timeout(self._settings.timeout_s, read=timeout_s or self._settings.timeout_s)
        try:
            return await self._client.request(method, f"{self.url}{path}", json=json, params=params, timeout=timeout)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise EngineAwayError(f"vLLM server at {self.url} does not answer: {reason}") from error

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        """Return the JSON object of an answer.

        Raises:
            ValueError: the server says that the request is wrong.
            EngineAwayError: it failed, or what came is no JSON object.
        """
        path = response.request.url.path
        if response.status_code in {400, 413, 422}:
            raise ValueError(f"vLLM server at {self.url} refuses {path}: {_message(response)}")
        if response.is_error:
            raise EngineAwayError(f"vLLM server at {self.url} answers {path} with {_explain(response)}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EngineAwayError(f"vLLM server at {self.url} answers {path} with no JSON object: {_message(response)}")
        return answer

    def _field(self, answer: Mapping[str, Any], name: str) -> Any:
        if name not in answer:
            raise EngineAwayError(f"vLLM server at {self.url} gave an answer without {name!r}: {str(answer)[:200]}")
        return answer[name]


def _explain(response: httpx.Response) -> str:
    hint = {
        401: "; it wants an API key: --vllm.api-key-file",
        404: "; is it a vLLM of dev mode? Start it with VLLM_SERVER_DEV_MODE=1",
    }.get(response.status_code, "")
    return f"HTTP status {response.status_code}: {_message(response)}{hint}"


def _message(response: httpx.Response) -> str:
    return " ".join(response.text[:300].split())
