"""What lets a TinyLM see: a small image becomes soft tokens that stand before the prompt.

Shape legend: B rows, H pixels of height, W of width, C channels, N patches of an image, E values of a patch, D model
width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The images that a model sees: `image_size` pixels square, cut into patches of `patch_size` pixels square."""

    image_size: int
    patch_size: int
    channels: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit."""
        for name in ("image_size", "patch_size", "channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def patches(self) -> int:
        """Number of patches N, and so of soft tokens."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape [H, W, C] of an image."""
        return self.image_size, self.image_size, self.channels


class ImageEncoder(nn.Module):
    """Turns images into soft tokens: a linear map of each patch, plus a learned vector for where it lies."""

    def __init__(self, config: VisionConfig, width: int) -> None:
        """Create the weights."""
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch_size**2 * config.channels, width, bias=False)
        self.place_embedding = nn.Embedding(config.patches, width)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Return soft_tokens_BND of uint8 images.

        Raises:
            ValueError: the images are not uint8, or of another shape.
        """
        shape = self.config.image_shape
        if images_BHWC.dtype != torch.uint8 or tuple(images_BHWC.shape[1:]) != shape:
            raise ValueError(
                f"this model sees uint8 images of shape {shape}, got {images_BHWC.dtype} {tuple(images_BHWC.shape[1:])}"
            )
        embedded_BND: Tensor = self.patch_embedding(self._patches(images_BHWC))
        return embedded_BND + self.place_embedding.weight

    def _patches(self, images_BHWC: Tensor) -> Tensor:
        """Return patches_BNE, row by row, in [-0.5, 0.5]."""
        size = self.config.patch_size
        scaled_BHWC = images_BHWC.float() / 255 - 0.5
        tiles = scaled_BHWC.unfold(1, size, size).unfold(2, size, size)  # [B, rows, columns, C, size, size]
        return tiles.flatten(1, 2).flatten(2)
