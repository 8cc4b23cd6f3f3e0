"""Tiny Hugging Face models with random weights, and a tokenizer for them; nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

VOCAB = 64
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def llama_config(**changes: Any) -> PreTrainedConfig:
    """Return a Llama of two layers; its head has weights of its own."""
    return LlamaConfig(**(_SHAPE | {"tie_word_embeddings": False} | changes))


def qwen2_config(**changes: Any) -> PreTrainedConfig:
    """Return a Qwen2 of two layers, whose head is its embedding."""
    return Qwen2Config(**(_SHAPE | {"tie_word_embeddings": True} | changes))


def write_model(folder: Path, config: PreTrainedConfig) -> Path:
    """Write a model of this shape with random weights, always the same, and a tokenizer; return the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2} | {f"w{number}": number for number in range(3, VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    ).save_pretrained(folder)
    return folder
