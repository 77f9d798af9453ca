"""Where a classifier looked: Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063) in 2D and 3D.

MONAI's `GradCAMpp` is not used. It hooks a module: the encoders' feature maps leave a method as a list, a transformer's
as tokens, and its backward hooks refuse the in-place activations of the convolutional ones. It keeps the graph of the
whole encoder, here only the head is differentiated; and exp(score) overflows from a score of 89 on, in float32. A test
holds the two against each other on a network that suits both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.sample import Sample, centred, upright
from scanfoundry.finetune.task import Adapter
from scanfoundry.finetune.task_parts import Picture

Map = npt.NDArray[np.float32]


def saliency(model: WholeScanModel, image: Tensor, class_index: int) -> Tensor:
    """What speaks for a class: Grad-CAM++ of the encoder's deepest level, linear to the image's grid.

    Args:
        model: in evaluation mode; its own gradients are left alone.
        image: (1, C, D, H, W), on the model's device.
        class_index: of the class.

    Returns:
        (D, H, W) in [0, 1], the largest value 1; zero everywhere where no feature's gradient is positive.
    """
    features, gradient = _deepest(model, image, class_index)
    size = (image.shape[2], image.shape[3], image.shape[4])
    small = grad_cam_pp(features, gradient).float()
    large = F.interpolate(small[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
    highest = large.max()
    return large / highest if highest > 0 else torch.zeros_like(large)


def grad_cam_pp(features: Tensor, gradient: Tensor) -> Tensor:
    """The map (d, h, w), not scaled, from feature maps A (F, d, h, w) and the gradient g of a class score by them.

    alpha = g^2 / (2 g^2 + g^3 sum A)  their closed form for a score Y = exp(S), in which exp(S) cancels
    w = sum alpha ReLU(g)              without the factor exp(S) that all features share
    map = ReLU(sum w A)
    The paper's maps follow a ReLU. Those of a transformer or of MedNeXt have both signs, with which the denominator
    may vanish, and every place may end below zero: A then counts as two maps, max(A, 0) with the gradient g and
    max(-A, 0) with -g, which is the same network. Where nothing is negative, this is the paper's.
    """
    a, g = features.double(), gradient.double()
    both, slopes = torch.cat((a.clamp(min=0), (-a).clamp(min=0))), torch.cat((g, -g)).clamp(min=0)
    # Where g > 0, g^2 cancels, which keeps gradients of any smallness; elsewhere ReLU(g) is zero.
    alpha = torch.where(slopes > 0, 1 / (2 + slopes * both.sum((1, 2, 3), keepdim=True)), 0.0)
    return torch.einsum("f,fdhw->dhw", (alpha * slopes).sum((1, 2, 3)), both)


@contextmanager
def _cut_below_the_head(encoder: Encoder) -> Iterator[list[Tensor]]:
    """The encoder's deepest features become leaves of the graph, and are collected."""
    leaves: list[Tensor] = []
    plain = encoder.forward

    def forward(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            *finer, deepest = plain(x)
        leaves.append(deepest.detach().requires_grad_())
        return [*finer, leaves[-1]]

    encoder.forward = forward  # type: ignore[method-assign]
    try:
        yield leaves
    finally:
        del encoder.forward


def _deepest(model: WholeScanModel, image: Tensor, class_index: int) -> tuple[Tensor, Tensor]:
    """Feature maps (F, d, h, w) of the deepest level, and the gradient of the class score by them."""
    assert not model.training
    assert len(image) == 1
    with torch.inference_mode(False), torch.enable_grad(), _cut_below_the_head(model.encoder) as leaves:
        score = model(image.clone())[0, class_index]
        (gradient,) = torch.autograd.grad(score, leaves[0])
    return leaves[0].detach()[0], gradient[0]


def scan_saliency(
    adapter: Adapter[Any, Any],
    members: Sequence[WholeScanModel],
    sample: Sample[int],
    class_index: int,
    device: torch.device,
) -> Map:
    """The mean map of an ensemble; `volumes.resize` brings it to the file's grid.

    Args:
        adapter: the task.
        members: models in evaluation mode.
        sample: the scan.
        class_index: of the class.
        device: where the models are.

    Returns:
        (D, H, W) at the grid of the sample's image.
    """
    image = centred(sample, adapter.spec.plan).to(device)
    found = torch.stack([saliency(model, image, class_index) for model in members]).mean(0).cpu()
    inside = (
        slice((p - n) // 2, (p - n) // 2 + n) for n, p in zip(sample.image.shape[1:], found.shape, strict=True)
    )  # where `centred` has put it
    return found[tuple(inside)].numpy()


def picture_with_saliency(
    adapter: Adapter[Any, Any],
    members: Sequence[WholeScanModel],
    sample: Sample[int],
    prediction: npt.NDArray,
    device: torch.device,
) -> Picture:
    """`Classification.picture` and two maps of its slice.

    A volume is seen across its shortest axis, where the predicted class's map is strongest.

    Args:
        adapter: the task.
        members: models in evaluation mode.
        sample: the scan.
        prediction: probabilities (K,).
        device: where the models are.

    Returns:
        With 'saliency' of the predicted class and 'saliency_truth' of the true one, both (H, W) in [0, 1].
    """
    assert sample.truth is not None
    predicted = int(np.argmax(prediction))
    maps = {"saliency": scan_saliency(adapter, members, sample, predicted, device)}
    same = predicted == sample.truth
    maps["saliency_truth"] = (
        maps["saliency"] if same else scan_saliency(adapter, members, sample, int(sample.truth), device)
    )
    image = sample.image[0].numpy()
    axis = int(np.argmin(image.shape))
    strength = maps["saliency"].sum(tuple(a for a in range(3) if a != axis))
    index = int(strength.argmax()) if strength.any() else image.shape[axis] // 2
    shown = {
        name: upright(np.take(part, index, axis), sample.orientation, axis).astype(np.float16)
        for name, part in {"image": image, **maps}.items()
    }
    return adapter.picture(sample, prediction) | shown
