"""Hugging Face models are scored, saved and restored as transformers itself would."""
# ruff: noqa: N803, N806 - tensor shapes as suffixes

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer.hf_models import VOCAB, llama_config, qwen2_config, write_model
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from groupreplay.weights import weights_sha256
from groupreplay_trainer import hf_policy
from groupreplay_trainer.hf_policy import HuggingFacePolicy
from groupreplay_trainer.policy_model import ModelOptions, load_policy_model
from groupreplay_trainer.publish import WeightsFolder

FLOAT32 = ModelOptions(dtype="float32", device="cpu")


@pytest.fixture(params=[llama_config, qwen2_config], ids=["own head", "tied head"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a tiny model."""
    make: Callable[[], PreTrainedConfig] = request.param
    return write_model(tmp_path / "start", make())


def load(folder: Path, **options: Any) -> HuggingFacePolicy:
    """Return the model of a folder, on the CPU, in float32 unless told otherwise."""
    model = load_policy_model(str(folder), ModelOptions(**({"dtype": "float32", "device": "cpu"} | options)))
    assert isinstance(model, HuggingFacePolicy)
    return model


def make_rows(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return token_ids_BT and attention_mask_BT of random rows of these lengths, padded with 0."""
    generator = torch.Generator().manual_seed(1)
    token_ids_BT = torch.randint(3, VOCAB, (len(lengths), max(lengths)), generator=generator)
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return token_ids_BT.masked_fill(~mask_BT, 0), mask_BT


def expected_scores(folder: Path, row: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log probabilities and entropies of a row's tokens but the first, by plain transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        distribution = torch.distributions.Categorical(logits=model(row[None]).logits[0, :-1] / temperature)
    return distribution.log_prob(row[1:]), distribution.entropy()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("options", [{}, {"packing": "packed"}, {"attention": "eager"}], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_those_of_plain_transformers(folder: Path, options: dict[str, str], temperature: float) -> None:
    """Each rollout is scored as if it were alone, padded or packed."""
    lengths = (9, 4, 7, 2)
    token_ids_BT, mask_BT = make_rows(*lengths)
    scores = load(folder, **options).score(token_ids_BT, mask_BT, temperature=temperature)
    for b, length in enumerate(lengths):
        logprobs, entropies = expected_scores(folder, token_ids_BT[b, :length], temperature=temperature)
        torch.testing.assert_close(scores.logprobs_BT[b, 1:length], logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores.entropy_BT[b, 1:length], entropies, atol=1e-5, rtol=1e-5)
    assert not scores.logprobs_BT[:, 0].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
@pytest.mark.parametrize("options", [{}, {"packing": "packed"}, {"activation_checkpointing": True}], ids=str)
def test_scores_and_gradients_of_a_cuda_device_are_those_of_the_cpu(folder: Path, options: dict[str, Any]) -> None:
    """The batch stays on the CPU, and so do the scores."""
    token_ids_BT, mask_BT = make_rows(9, 4, 7, 2)
    found = []
    for device in ("cpu", "cuda"):
        model = load(folder, device=device, **options)
        scores = model.score(token_ids_BT, mask_BT, temperature=0.7)
        gradients = torch.autograd.grad(scores.logprobs_BT[mask_BT].sum(), model.parameters())
        found.append((scores.logprobs_BT[mask_BT], [gradient.cpu() for gradient in gradients]))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)


def test_logits_are_computed_for_the_asked_tokens_alone_and_piece_by_piece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the pieces nor what is left out change a score or a gradient; no piece is larger than the limit."""
    token_ids_BT, mask_BT = make_rows(9, 6)
    scored_BT = mask_BT & (torch.arange(9) >= 3)
    model = load(folder)
    sizes: list[int] = []
    head = model._model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, logits_NV: sizes.append(logits_NV.shape[0]))
    gradients, logprobs = [], []
    for limit in (2**25, 2 * VOCAB):
        monkeypatch.setattr(hf_policy, "MAX_LOGITS_AT_ONCE", limit)
        scores = model.score(token_ids_BT, mask_BT, scored_BT, temperature=1.0)
        total = (scores.logprobs_BT + scores.entropy_BT)[scored_BT].sum()
        gradients.append(torch.autograd.grad(total, model.parameters()))
        logprobs.append(scores.logprobs_BT)
    # The pieces are computed a second time in the backward pass.
    assert sizes[0] == 9
    assert sorted(sizes[1:]) == [1, 1, *[2] * 8]
    torch.testing.assert_close(logprobs[0], logprobs[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    everything = model.score(token_ids_BT, mask_BT, temperature=1.0).logprobs_BT
    torch.testing.assert_close(logprobs[0][scored_BT], everything[scored_BT])


def test_bfloat16_rounds_the_forward_pass_but_not_the_weights(folder: Path) -> None:
    """Weights and gradients stay float32; scores come out as float32, a little off the exact ones."""
    token_ids_BT, mask_BT = make_rows(9, 6)
    exact = load(folder).score(token_ids_BT, mask_BT, temperature=1.0).logprobs_BT
    model = load(folder, dtype="bfloat16")
    rounded = model.score(token_ids_BT, mask_BT, temperature=1.0).logprobs_BT
    assert rounded.dtype is torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.3
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_activation_checkpointing_changes_no_gradient_and_keeps_dropout_off(tmp_path: Path) -> None:
    """A model configured with dropout scores the same twice, and its layers run again in the backward pass."""
    folder = write_model(tmp_path / "start", llama_config(attention_dropout=0.5))
    token_ids_BT, mask_BT = make_rows(9, 6)
    gradients, runs = [], []
    calls: list[int] = []
    for recompute in (False, True):
        model = load(folder, activation_checkpointing=recompute)
        calls.clear()
        model._model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        scores = model.score(token_ids_BT, mask_BT, temperature=1.0)
        gradients.append(torch.autograd.grad(scores.logprobs_BT.sum(), model.parameters()))
        runs.append(len(calls))
        again = model.score(token_ids_BT, mask_BT, temperature=1.0)
        assert torch.equal(scores.logprobs_BT, again.logprobs_BT)
    assert runs == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def test_published_weights_are_a_model_folder_that_transformers_loads(folder: Path, tmp_path: Path) -> None:
    """Configuration, tokenizer and weights in the model's dtype, under the digest that is announced."""
    model = load(folder, dtype="bfloat16")
    published = WeightsFolder(tmp_path / "weights", keep=2)
    published.prepare()
    policy = published.publish(model, run="r", version=12)
    path = tmp_path / "weights" / "policy-000012"
    assert policy.weights_uri == path.as_uri()
    assert policy.weights_sha256 == weights_sha256(path)
    assert published.holds(policy)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert loaded.dtype is torch.bfloat16
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours.to(torch.bfloat16), theirs)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (path / name).read_bytes() == (folder / name).read_bytes()
    assert PreTrainedTokenizerFast.from_pretrained(path)("w5 w7")["input_ids"] == [5, 7]
    assert (path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert load(path).weights().keys() == model.weights().keys()


def test_publishing_a_version_again_replaces_it_and_the_oldest_folders_go(folder: Path, tmp_path: Path) -> None:
    """The same weights have the same digest; leftovers of a killed trainer are swept, whether file or folder."""
    model = load(folder)
    (tmp_path / "weights" / ".policy-000001.abc").mkdir(parents=True)
    (tmp_path / "weights" / ".policy-000001.abc" / "half").write_text("x")
    published = WeightsFolder(tmp_path / "weights", keep=2)
    published.prepare()
    policies = [published.publish(model, run="r", version=version) for version in (1, 2, 3, 3)]
    assert policies[2] == policies[3]
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["policy-000002", "policy-000003"]
    with torch.no_grad():
        model.parameters()[0].add_(1.0)
    assert published.publish(model, run="r", version=3).weights_sha256 != policies[3].weights_sha256
    assert not published.holds(policies[3])


def test_weights_can_be_taken_back_and_tied_ones_stay_tied(folder: Path) -> None:
    """`load_weights` restores what `weights` returned, in place, so that an optimizer keeps its parameters."""
    model = load(folder)
    kept = {name: tensor.clone() for name, tensor in model.weights().items()}
    parameters = model.parameters()
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    model.load_weights(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.weights().items())
    assert all(ours is theirs for ours, theirs in zip(parameters, model.parameters(), strict=True))
    tied = model._model.get_output_embeddings().weight is model._model.get_input_embeddings().weight
    assert tied == model._config.tie_word_embeddings
    assert ("lm_head.weight" in kept) != tied
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is missing"):
        model.load_weights({name: tensor for name, tensor in kept.items() if "embed" not in name})
    with pytest.raises(ValueError, match="has shape"):
        model.load_weights(kept | {"model.norm.weight": torch.zeros(3)})


def test_what_the_model_is_decides_what_it_takes(folder: Path) -> None:
    """Padding, longest rollout and vocabulary are those of the model's configuration."""
    model = load(folder)
    assert (model.pad_token_id, model.max_tokens, model.vocab_size, model.packs) == (0, 64, VOCAB, False)
    assert load(folder, packing="packed").packs


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """Neither an empty folder nor a path where nothing is becomes a question to the hub."""
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_policy_model(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        load_policy_model(str(tmp_path / "absent"))


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """Weights that are made up would train without a sign that anything is wrong."""
    folder = write_model(tmp_path / "start", llama_config(num_hidden_layers=1))
    llama_config(num_hidden_layers=2).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"lacks the weights .*layers\.1"):
        load(folder)


def test_a_model_with_code_of_its_own_is_refused(folder: Path) -> None:
    """No code that comes with a model is run."""
    (folder / "modeling_mine.py").write_text("raise SystemExit('this code ran')\n")
    config = (folder / "config.json").read_text()
    mapping = '"auto_map": {"AutoConfig": "modeling_mine.C", "AutoModelForCausalLM": "modeling_mine.M"},\n'
    other = config.replace('"model_type": "', '"model_type": "my_', 1)
    (folder / "config.json").write_text(other.replace("{\n", "{\n  " + mapping, 1))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder)


def test_unknown_treatment_of_logits_is_refused(folder: Path) -> None:
    """Where the model's logits are not head times hidden state, log probabilities would be wrong."""
    model = load(folder)._model
    forward: Callable[..., Any] = model.forward

    def sharpened(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        output.logits = output.logits * 1.5
        return output

    model.forward = sharpened
    with pytest.raises(ValueError, match="does something to its logits"):
        HuggingFacePolicy(model, tokenizer_files={}, options=FLOAT32)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_models_that_scale_or_cap_their_logits_are_scored_as_they_are(tmp_path: Path, kind: str) -> None:
    """Soft caps and factors are applied before log-softmax."""
    from transformers import CohereConfig, Gemma2Config, GraniteConfig  # noqa: PLC0415

    shape = llama_config().to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    common = {name: shape[name] for name in (*names, "num_key_value_heads", "max_position_embeddings")}
    common |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "initializer_range": 0.3}
    configs: dict[str, Callable[[], PreTrainedConfig]] = {
        "gemma2": lambda: Gemma2Config(**common, head_dim=8, final_logit_softcapping=2.0),
        "cohere": lambda: CohereConfig(**common, logit_scale=0.3),
        "granite": lambda: GraniteConfig(**common, logits_scaling=4.0),
    }
    folder = write_model(tmp_path / "start", configs[kind]())
    token_ids_BT, mask_BT = make_rows(6)
    # Gemma's soft cap inside attention is known to the eager implementation alone.
    found = load(folder, attention="eager").score(token_ids_BT, mask_BT, temperature=1.0).logprobs_BT[0, 1:]
    torch.testing.assert_close(found, expected_scores(folder, token_ids_BT[0], temperature=1.0)[0], atol=1e-4, rtol=0)


def test_without_transformers_the_error_says_what_to_install(folder: Path) -> None:
    """A TinyLM needs no transformers; a Hugging Face model does."""
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from groupreplay_trainer.policy_model import load_policy_model\n"
        "load_policy_model('builtin:addition')\n"
        f"load_policy_model({str(folder)!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "ModuleNotFoundError: a Hugging Face model needs transformers" in ended.stderr
    assert "pip install 'groupreplay[hf]'" in ended.stderr


def test_options_that_do_not_exist_are_refused(folder: Path) -> None:
    """A misspelt dtype, packing or device is an error that lists what there is."""
    with pytest.raises(ValueError, match="dtype 'fp8' is none of bfloat16, float32"):
        ModelOptions(dtype="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="packing 'tight' is none of padded, packed"):
        ModelOptions(packing="tight")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device 'gpu' is none of"):
        load(folder, device="gpu")
