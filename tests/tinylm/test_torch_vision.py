"""The tiny model that sees: image and text make one sequence, and what it sees decides what it says."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from groupreplay_tinylm import CharTokenizer, TinyLM, TinyLMConfig, VisionConfig, load_checkpoint, save_checkpoint
from groupreplay_tinylm.vision import ImageEncoder

TOKENIZER = CharTokenizer()
VISION = VisionConfig(image_size=8, patch_size=4)


def make_model(*, seed: int = 0, vision: VisionConfig | None = VISION) -> TinyLM:
    """Return a small model with random weights."""
    torch.manual_seed(seed)
    config = TinyLMConfig(vocab_size=TOKENIZER.vocab_size, layers=2, width=32, heads=2, max_positions=16, vision=vision)
    return TinyLM(config).eval()


def make_images(rows: int, *, seed: int = 0) -> torch.Tensor:
    """Return images_BHWC of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, 8, 8, 1), dtype=torch.uint8, generator=generator)


def test_decoding_gives_the_logits_of_the_full_forward() -> None:
    """Token by token, behind an image and behind padding, as in training."""
    model, images_BHWC = make_model(), make_images(2)
    prompts_BT = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask_BT = prompts_BT != 0
    response_BT = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        logits_BV, cache = model.prefill(prompts_BT, mask_BT, max_new_tokens=3, images_BHWC=images_BHWC)
        stepwise = [logits_BV] + [model.decode_step(response_BT[:, step], cache) for step in range(3)]
        for row in range(2):
            prompt_T = prompts_BT[row][mask_BT[row]]
            tokens_BT = torch.cat((prompt_T, response_BT[row]))[None]
            whole_TV = model(tokens_BT, images_BHWC=images_BHWC[row : row + 1])[0, len(prompt_T) - 1 :]
            torch.testing.assert_close(torch.stack([logits_BV[row] for logits_BV in stepwise]), whole_TV)


def test_padding_on_either_side_changes_nothing() -> None:
    """Positions are counted from the image on, over real tokens."""
    model, images_BHWC = make_model(), make_images(1)
    tokens_BT = torch.tensor([[5, 6, 7]])
    plain = model(tokens_BT, images_BHWC=images_BHWC)
    right = model(functional.pad(tokens_BT, (0, 2)), images_BHWC=images_BHWC)[:, :3]
    left = model(
        functional.pad(tokens_BT, (2, 0)),
        attention_mask_BT=torch.tensor([[False, False, True, True, True]]),
        images_BHWC=images_BHWC,
    )[:, 2:]
    given = model(tokens_BT, positions_BT=torch.arange(3)[None], images_BHWC=images_BHWC)
    for other in (right, left, given):
        torch.testing.assert_close(other, plain)


def test_each_part_of_the_image_matters() -> None:
    """Another pixel in any patch gives other logits, in that row alone."""
    model, images_BHWC = make_model(), make_images(2)
    tokens_BT = torch.tensor([[5, 6, 7]] * 2)
    before = model(tokens_BT, images_BHWC=images_BHWC)
    for row, column in ((0, 0), (0, 7), (7, 0), (7, 7)):
        changed_BHWC = images_BHWC.clone()
        changed_BHWC[0, row, column] ^= 255
        after = model(tokens_BT, images_BHWC=changed_BHWC)
        assert not torch.allclose(after[0], before[0], atol=1e-5)
        torch.testing.assert_close(after[1], before[1])


def test_patches_are_cut_row_by_row() -> None:
    """The soft token of a patch depends on the pixels of that patch."""
    encoder = ImageEncoder(VISION, 16)
    images_BHWC = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1)
    patches_NE = encoder._patches(images_BHWC)[0]
    expected = images_BHWC[0, :4, 4:, 0].flatten().float() / 255 - 0.5
    torch.testing.assert_close(patches_NE[1], expected)
    assert encoder(images_BHWC).shape == (1, 4, 16)


def test_a_checkpoint_keeps_the_eyes(tmp_path: Path) -> None:
    """What is loaded sees as what was saved."""
    model = make_model()
    save_checkpoint(tmp_path / "seeing.safetensors", model)
    loaded = load_checkpoint(tmp_path / "seeing.safetensors")
    assert loaded.config == model.config
    tokens_BT, images_BHWC = torch.tensor([[5, 6]]), make_images(1)
    torch.testing.assert_close(loaded(tokens_BT, images_BHWC=images_BHWC), model(tokens_BT, images_BHWC=images_BHWC))


def test_a_text_models_checkpoint_says_nothing_of_vision(tmp_path: Path) -> None:
    """Versions that know no images still read it."""
    save_checkpoint(tmp_path / "text.safetensors", make_model(vision=None))
    assert b"vision" not in (tmp_path / "text.safetensors").read_bytes()
    assert load_checkpoint(tmp_path / "text.safetensors").config.vision is None


def test_images_and_models_that_do_not_fit_are_refused() -> None:
    """Each error says what the model sees."""
    tokens_BT = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="this model needs an image for every row"):
        make_model()(tokens_BT)
    with pytest.raises(ValueError, match="this model sees no images"):
        make_model(vision=None)(tokens_BT, images_BHWC=make_images(1))
    with pytest.raises(ValueError, match=r"sees uint8 images of shape \(8, 8, 1\), got torch.uint8 \(8, 4, 1\)"):
        make_model()(tokens_BT, images_BHWC=make_images(1)[:, :, :4])
    with pytest.raises(ValueError, match="13 tokens and an image of 4 exceed max_positions 16"):
        make_model()(torch.ones((1, 13), dtype=torch.long), images_BHWC=make_images(1))
    assert make_model().config.max_text_tokens == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "image_size 8 is not a multiple of patch_size 3"),
        ({"channels": 0}, "channels must be an integer >= 1, got 0"),
    ],
)
def test_an_impossible_eye_is_refused(changes: dict[str, int], message: str) -> None:
    """A configuration that no model can have fails when it is written down."""
    with pytest.raises(ValueError, match=message):
        VisionConfig(**({"image_size": 8, "patch_size": 4} | changes))
