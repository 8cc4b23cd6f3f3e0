"""A trivial environment on atroposlib's own base class, and what it needs to start without a network."""

import logging
from pathlib import Path
from typing import Any

from atroposlib.envs.base import BaseEnv, BaseEnvConfig, ScoredDataGroup
from atroposlib.envs.server_handling.server_baseline import ServerBaseline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PROMPT_TOKENS = 200  # a push is above 1 KiB, so that it is gzipped


def tokenizer_folder(folder: Path) -> str:
    """Write a tokenizer of two words."""
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(folder)
    return str(folder)


def config(url: str, folder: Path, **other: Any) -> BaseEnvConfig:
    """Return the configuration of an environment that pushes to this server."""
    settings = {
        "rollout_server_url": url, "tokenizer_name": tokenizer_folder(folder), "use_wandb": False, "group_size": 4,
        "wandb_name": "adding", "max_token_length": 512, "total_steps": -1, "batch_size": -1, "steps_per_eval": 0,
        "max_num_workers": 4, "max_batches_offpolicy": 2, "worker_timeout": 0, "min_items_sent_before_logging": 10**9,
    }  # fmt: skip
    return BaseEnvConfig(**settings | other)


def group_of(number: int, *, with_logprobs: bool = True) -> ScoredDataGroup:
    """Return the group of one problem: four answers, half of them right."""
    prompt = [1000 + number] + [1] * (PROMPT_TOKENS - 1)
    answers = [[10 + index, 20, 30] for index in range(4)]
    group = ScoredDataGroup()
    group["tokens"] = [prompt + answer for answer in answers]
    group["masks"] = [[-100] * PROMPT_TOKENS + answer for answer in answers]
    group["scores"] = [1.0, 0.0, 1.0, 0.0]
    if with_logprobs:
        group["inference_logprobs"] = [[1.0] * PROMPT_TOKENS + [-0.5, -0.25, -0.125]] * 4
    return group


class AddingEnv(BaseEnv):  # type: ignore[misc]  # make check has no atroposlib
    """Makes group after group."""

    name = "adding"

    def __init__(self, settings: BaseEnvConfig) -> None:
        super().__init__(settings, ServerBaseline(), testing=True)
        self.made = 0
        self.largest_queue = 0

    async def setup(self) -> None:
        """Nothing to set up."""

    async def get_next_item(self) -> int:
        """Return the number of a problem."""
        self.made += 1
        self.largest_queue = max(self.largest_queue, self.status_dict["queue_size"])
        return self.made

    async def collect_trajectories(self, item: int) -> tuple[ScoredDataGroup, list[int]]:
        """Return the group of a problem."""
        return group_of(item), []

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to evaluate."""
        logging.info("evaluated")
