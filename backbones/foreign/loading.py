"""One entry for weights of others: recognise, convert, describe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from scanfoundry.backbones.foreign import (
    mednext_official,
    openmind,
    openmind_primus,
    openmind_resenc,
    resenc_whole,
    stunet_v1,
    timm_mae,
)
from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.totalsegmentator import CLASSES as TOTALSEGMENTATOR
from scanfoundry.backbones.foreign.weights import Weights, read_weights
from scanfoundry.backbones.layers.levels import Stride
from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.models.description import HeadInfo, ReleaseInfo
from scanfoundry.backbones.models.parts import Parts, split
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import opened_once, sha256_of
from scanfoundry.configs.geometry import Size3D

KEYS_SHOWN = 8


@dataclass(frozen=True)
class Kind:
    """One family of files: how to know it, how to read it, what is known about it."""

    name: str
    knows: Callable[[Weights], bool]
    encoder: Callable[..., tuple[Encoder, Report]]
    options: tuple[str, ...]  # that `encoder` takes beside in_channels
    facts: Callable[[Weights], tuple[dict[str, Any], tuple[str, ...]]]  # fields of ReleaseInfo, notes
    whole: Callable[..., tuple[UNet, Report]] | None = None  # reads the decoder and the heads too
    is_whole: Callable[[Weights], bool] = lambda weights: False  # whether the file holds what `whole` reads


def load_foreign(
    path: str | Path,
    in_channels: int | None = None,
    strides: tuple[Stride, ...] | None = None,
    patch_2d: tuple[int, int] | None = None,
    patch_3d: Size3D | None = None,
) -> tuple[Encoder, ReleaseInfo, Report]:
    """The encoder in a file that others released, what is known about it, and what became of every key.

    Read are STU-Net and MedNeXt files of their authors (nnU-Net v1), ViTs under timm's names (timm, MAE), ResEncs of
    nnssl (OpenMind) and nnU-Net v2, and Primus of nnssl. Raises UserError for a file that is damaged, unsafe or of no
    known kind, and for an option that the file's kind does not have.

    Args:
        in_channels: None keeps the file's.
        strides: of a STU-Net, where they are not the released ones, or of a ResEnc whose file does not say them.
        patch_2d, patch_3d: of a ViT, see `timm_mae.load_encoder`.
    """
    given = {"strides": strides, "patch_2d": patch_2d, "patch_3d": patch_3d}

    def read(kind: Kind, weights: Weights, options: dict[str, Any]) -> tuple[Encoder, BackboneConfig, Report]:
        encoder, report = kind.encoder(weights, in_channels, **options)
        return encoder, encoder.config, report

    return _loaded(Path(path), given, read)


def load_foreign_parts(
    path: str | Path, in_channels: int | None = None, **options: Any
) -> tuple[Parts, ReleaseInfo, Report]:
    """All parts of the model in a file that others released: decoder and head too, where we have the same ones.

    Arguments, returned values and errors are those of `load_foreign`, with weights by part in place of the encoder.
    """

    def read(kind: Kind, weights: Weights, options: dict[str, Any]) -> tuple[Parts, BackboneConfig, Report]:
        if kind.whole is None or not kind.is_whole(weights):
            encoder, report = kind.encoder(weights, in_channels, **options)
            return {"encoder": encoder.state_dict()}, encoder.config, report
        network, report = kind.whole(weights, in_channels, **options)
        fresh = {network.part_of(name)[0] for name in report.missing}  # a decoder without a head has none
        found = {part: w for part, w in split(network, network.state_dict()).items() if part not in fresh}
        return found, cast(BackboneConfig, network.config), report

    return _loaded(Path(path), options, read)


Model = TypeVar("Model")


def _loaded(
    path: Path,
    given: Mapping[str, Any],
    read: Callable[[Kind, Weights, dict[str, Any]], tuple[Model, BackboneConfig, Report]],
) -> tuple[Model, ReleaseInfo, Report]:
    options = {name: value for name, value in given.items() if value is not None}
    try:
        with opened_once(path) as (stream, same):
            weights = read_weights(path, same)
            kind = recognise(weights)
            if wrong := sorted(options.keys() - set(kind.options)):
                raise UserError(f"{path} is a {kind.name}, which has no {wrong[0]}; leave it out")
            model, config, report = read(kind, weights, options)
            fields, notes = kind.facts(weights)
            digest = sha256_of(stream)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    info = ReleaseInfo(backbone=config, weights_sha256=digest, **fields)
    return model, info, replace(report, notes=(*report.notes, *notes))


def load_foreign_whole(
    path: str | Path,
    in_channels: int | None = None,
    strides: tuple[Stride, ...] | None = None,
    num_classes: int | None = None,
) -> tuple[UNet, Report]:
    """The whole network in a STU-Net, MedNeXt or ResEnc file, heads included; options as in `load_foreign`.

    Args:
        num_classes: another number than the file's gets fresh heads.
    """
    weights = read_weights(Path(path))
    kind = recognise(weights)
    if kind.whole is None or (strides and "strides" not in kind.options):
        raise UserError(f"{path} is a {kind.name}, which has no {'strides' if strides else 'decoder'}; leave it out")
    options = {} if strides is None else {"strides": strides}
    return kind.whole(weights, in_channels, num_classes=num_classes, **options)


def recognise(weights: Weights) -> Kind:
    """The kind of a file; UserError, with its first keys, where it is none of them."""
    for kind in KINDS:
        if kind.knows(weights):
            return kind
    first = ", ".join(list(weights.tensors)[:KEYS_SHOWN])
    names = ", ".join(kind.name for kind in KINDS)
    raise UserError(f"{weights.path} is of no known kind ({names}): its first keys are {first}")


def _stunet_facts(weights: Weights) -> tuple[dict[str, Any], tuple[str, ...]]:
    fields: dict[str, Any] = {"citation": "Huang et al. 2023, STU-Net, arXiv 2304.06716"}
    head = weights.tensors.get(stunet_v1.HEAD)
    if head is None or len(head) != len(TOTALSEGMENTATOR) + 1:
        return fields | _unnamed(head), (openmind.UNKNOWN,)
    fields |= {"objective": "supervised: TotalSegmentator", "crop_3d": (128, 128, 128), "licence": "apache-2.0"}
    fields |= {"intensity": openmind.WHOLE_SCAN, "spacing_mm": (1.5, 1.5, 1.5)}
    classes = list(TOTALSEGMENTATOR)
    fields["head"] = HeadInfo(task="segmentation", classes=classes, patch=(128, 128, 128), modality="nonct")
    note = (
        "105 classes: taken for the authors' TotalSegmentator weights (apache-2.0), of patches of 128^3 at 1.5 mm; "
        "they saw CT z-scored, so fine-tune on CT with data.modality=nonct ('ct' is clipped to a window)"
    )
    return fields, (note,)


def _vit_facts(weights: Weights) -> tuple[dict[str, Any], tuple[str, ...]]:
    fields = {
        "crop_2d": timm_mae.image_size(weights),
        "citation": "He et al. 2022, Masked autoencoders, arXiv 2111.06377",
    }
    published = "weights published with MAE are CC-BY-NC-4.0, of RGB images normalised by ImageNet's mean and deviation"
    return fields, (openmind.UNKNOWN, published)


def _mednext_facts(weights: Weights) -> tuple[dict[str, Any], tuple[str, ...]]:
    fields: dict[str, Any] = {"citation": "Roy et al. 2023, MedNeXt, arXiv 2303.09975"}
    return fields | _unnamed(weights.tensors.get(mednext_official.HEAD)), (openmind.UNKNOWN,)


def _unnamed(head: Tensor | None) -> dict[str, Any]:
    """The field of a head whose file does not name its classes."""
    return {} if head is None else {"head": HeadInfo(task="segmentation")}


KINDS = (
    Kind(
        "STU-Net",
        stunet_v1.is_stunet,
        stunet_v1.load_encoder,
        ("strides",),
        _stunet_facts,
        stunet_v1.load_whole,
        lambda weights: stunet_v1.HEAD in weights.tensors,
    ),
    Kind("ViT", timm_mae.is_vit, timm_mae.load_encoder, ("patch_2d", "patch_3d"), _vit_facts),
    Kind(
        "MedNeXt",
        mednext_official.is_mednext,
        mednext_official.load_encoder,
        (),
        _mednext_facts,
        mednext_official.load_whole,
        lambda weights: mednext_official.HEAD in weights.tensors,
    ),
    Kind(
        "ResEnc",
        openmind_resenc.is_resenc,
        openmind_resenc.load_encoder,
        ("strides",),
        resenc_whole.facts,
        resenc_whole.load_whole,
        resenc_whole.is_whole,
    ),
    Kind("Primus", openmind_primus.is_primus, openmind_primus.load_encoder, (), openmind_primus.facts),
)
