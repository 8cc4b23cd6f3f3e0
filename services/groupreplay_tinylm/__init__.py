"""A tiny causal language model, its tokenizer and its checkpoints: what the demo trains and samples from."""

from groupreplay_tinylm.checkpoint import CheckpointError, builtin_checkpoint, load_checkpoint, save_checkpoint
from groupreplay_tinylm.model import KVCache, TinyLM, TinyLMConfig
from groupreplay_tinylm.tokenizer import ALPHABET, CharTokenizer
from groupreplay_tinylm.vision import VisionConfig

__all__ = [
    "ALPHABET",
    "CharTokenizer",
    "CheckpointError",
    "KVCache",
    "TinyLM",
    "TinyLMConfig",
    "VisionConfig",
    "builtin_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
