"""Whole scans through a network that was trained on patches."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scanforge.finetune.config import Size
from scanforge.finetune.monai_parts import sliding_window_inference


@torch.inference_mode()
def volume_logits(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    fill: float,
    patch: Size,
    overlap: float,
    mirrors: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Tensor:
    """Logits (K, D, H, W) on the CPU of an image (C, D, H, W): Gaussian-weighted windows of the patch's size,
    averaged over the mirrorings. A scan no larger than the patch goes through in one piece, padded with `fill`.
    """
    padding: list[int] = []
    for size, wanted in zip(reversed(image.shape[1:]), reversed(patch), strict=True):
        missing = max(0, wanted - size)
        padding += [missing // 2, missing - missing // 2]
    padded = F.pad(image[None], padding, value=fill)
    total: Tensor | None = None
    for axes in mirrors:
        spatial = [axis + 2 for axis in axes]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = sliding_window_inference(
                padded.flip(spatial),
                patch,
                1,
                lambda x: model(x).float(),
                overlap,
                mode="gaussian",
                sw_device=device,
                device=torch.device("cpu"),
            )
        assert isinstance(logits, Tensor)
        total = logits.flip(spatial) if total is None else total + logits.flip(spatial)
    assert total is not None
    d, h, w = image.shape[1:]
    (w0, _, h0, _, d0, _) = padding
    return total[0, :, d0 : d0 + d, h0 : h0 + h, w0 : w0 + w] / len(mirrors)
