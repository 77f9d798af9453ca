"""A model for a run of another kind than it was trained in: larger kernels, volumes in place of images, and back.

All networks hold 3D kernels. On images a convolution uses its middle slice alone, and a transposed convolution whose
kernel is its stride uses the mean of its slices. So what images alone have trained is meaningless on volumes: there
the slices beside the middle are still random. From 2D to 3D the middle slices are therefore inflated over the whole
kernel; from 3D to 2D the kernels are flattened into the middle slice. `inflate.py` says which way keeps what.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.parts import Parts
from scanfoundry.backbones.models.release import Release
from scanfoundry.backbones.registry import BackboneConfig, build
from scanfoundry.backbones.transfer.enlarge import Enlargement, enlarge_state
from scanfoundry.backbones.transfer.inflate import Flattening, Inflation, flatten_kernels, inflate_kernels
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError

_BACK: Mapping[Inflation, Flattening] = {"centre": "centre", "average": "sum", "fourier": "fourier"}
_WITH_KERNELS: tuple[Part, ...] = ("encoder", "decoder")  # heads have kernels of one voxel


class AdaptConfig(Config):
    """How a model is changed where a run starts from it; nothing is changed that is not asked for."""

    kernel: Enlargement | None = None  # into a backbone of larger kernels: UpKern, or zeros around the small one
    dimension: Inflation | None = None  # from images to volumes or back; the way is that of the model and the run

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return self.kernel is not None or self.dimension is not None


def adapted(
    release: Release, adapt: AdaptConfig, backbone: BackboneConfig, images: bool, volumes: bool, name: str
) -> tuple[Release, str]:
    """A model as a run wants it.

    Args:
        release: the model.
        adapt: what is asked for.
        backbone: of the run; of another size or family it is left to the caller to refuse.
        images: whether the run takes scans of depth 1.
        volumes: whether it takes others.
        name: of the model, for messages.

    Returns:
        The model, whose description names its new backbone; and what was done in a few words, '' for nothing.

    Raises:
        UserError: what is asked for does not fit the model or the run, or kernels differ and nothing is asked for.
    """
    done = []
    theirs, ours = getattr(release.info.backbone, "kernel", None), getattr(backbone, "kernel", None)
    same = release.info.backbone.name == backbone.name
    if same and theirs != ours:
        release = _enlarged(release, adapt.kernel, theirs, ours, name)
        done.append(f"kernels of {theirs} enlarged to {ours} by {adapt.kernel}")
    elif adapt.kernel is not None:
        raise UserError(f"adapt.kernel does nothing here: the kernels of {name} are those of the run; leave it out")
    if adapt.dimension is not None:
        release, how = _turned(release, adapt.dimension, images, volumes, name)
        done.append(how)
    return release, "; ".join(done)


def advice(info: ReleaseInfo, adapt: AdaptConfig, volumes: bool, name: str) -> str:
    """What to say where volumes are about to meet kernels that images alone have trained; '' where they do not."""
    if adapt.dimension is not None or not volumes or not _flat(info) or info.backbone.family != "convolutional":
        return ""
    return (
        f"{name} was trained on images alone: only the middle slices of its kernels are trained, the others are as "
        "they were at the start; adapt.dimension=centre, average or fourier makes kernels for volumes of them"
    )


def _flat(info: ReleaseInfo) -> bool:
    """Whether a model was trained on images alone, as far as its description says."""
    return info.crop_2d is not None and info.crop_3d is None


def _enlarged(release: Release, how: Enlargement | None, theirs: object, ours: object, name: str) -> Release:
    if how is None:
        raise UserError(
            f"{name} has backbone.kernel {theirs}, the run's is {ours}: set adapt.kernel=upkern (a warm start) or "
            f"centre (the same function), or backbone.kernel={theirs}"
        )
    changed = release.info.backbone.model_copy(update={"kernel": ours})
    with torch.device("meta"):
        network = build(changed)
        decoder = network.feature_decoder()
    like = {"encoder": network.state_dict(), "decoder": decoder.state_dict() if decoder is not None else {}}
    parts: Parts = dict(release.parts)
    for part in _WITH_KERNELS:
        if part in parts:
            parts[part], _ = enlarge_state(parts[part], like[part], how)
    return replace(release, parts=parts, info=release.info.model_copy(update={"backbone": changed}))


def _turned(release: Release, how: Inflation, images: bool, volumes: bool, name: str) -> tuple[Release, str]:
    """The model for scans of the other dimension, and what was done."""
    info = release.info
    if info.backbone.family != "convolutional":
        raise UserError(
            f"adapt.dimension is for convolutions; {name} is a {info.backbone.name}, which embeds patches of images "
            "and of volumes by weights of their own; leave it out"
        )
    inflate, flatten = _flat(info) and volumes, not _flat(info) and images and not volumes
    if not inflate and not flatten:
        kind = "images alone" if _flat(info) else "volumes"
        raise UserError(
            f"adapt.dimension does nothing here: {name} was trained on {kind}, as is this run; leave it out"
        )
    turn = _inflated if inflate else _flattened
    parts: Parts = dict(release.parts)
    for part in _WITH_KERNELS:
        if part in parts:
            parts[part] = {key: turn(value, how) if value.dim() == 5 else value for key, value in parts[part].items()}
    way = f"inflated from images to volumes by {how}" if inflate else f"flattened from volumes to images by {how}"
    return replace(release, parts=parts), f"kernels {way}"


def _inflated(kernel: Tensor, how: Inflation) -> Tensor:
    """What images have trained of a kernel (., ., kd, kh, kw), over the whole of it."""
    depth = kernel.shape[2]
    if depth % 2 == 0:  # of a transposed convolution, each of whose slices makes a slice of its own
        return kernel.mean(dim=2, keepdim=True).expand_as(kernel).contiguous()
    return kernel if depth == 1 else inflate_kernels(kernel[:, :, depth // 2], depth, how).contiguous()


def _flattened(kernel: Tensor, how: Inflation) -> Tensor:
    """A kernel (., ., kd, kh, kw) whose middle slice does for images what the whole did for volumes."""
    depth = kernel.shape[2]
    if depth % 2 == 0:  # images take the mean of its slices as it is
        return kernel
    return kernel if depth == 1 else inflate_kernels(flatten_kernels(kernel, _BACK[how]), depth, "centre").contiguous()
