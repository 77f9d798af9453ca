"""What checkpoints of nnU-Net v2 (github.com/MIC-DKFZ/nnUNet) say about themselves.

Beside `network_weights` they hold `init_args`: the plans, the name of the configuration that was trained, and the
content of `dataset.json`, which names the classes. Files that were stripped may still have `dataset.json` beside them,
or in the folder above, where nnU-Net puts it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scanfoundry.backbones.foreign import openmind
from scanfoundry.backbones.foreign.weights import Weights
from scanfoundry.backbones.models.description import RECONSTRUCTION, HeadInfo

DATASET = "dataset.json"
MOST_BYTES = 64 << 20  # of a dataset.json: it lists every case of the training
LONGEST = 120  # characters of a name


def entry(weights: Weights, *path: str) -> Any:
    """The entry of the checkpoint's records at a path of keys; None where there is none."""
    value: Any = weights.records
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def dataset_description(weights: Weights) -> Mapping[Any, Any]:
    """The content of the training's `dataset.json`, from the checkpoint or from beside it; empty where there is none.

    It is anyone's word.
    """
    inside = entry(weights, "init_args", "dataset_json")
    if isinstance(inside, Mapping):
        return inside
    for folder in (weights.path.absolute().parent, weights.path.absolute().parent.parent):
        found = _read(folder / DATASET)
        if isinstance(found, Mapping):
            return found
    return {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def classes(weights: Weights, outputs: int) -> list[str]:
    """Names of the classes of a head, without the background, in the order of its outputs.

    Args:
        weights: the file.
        outputs: of the head.

    Returns:
        No names where they are not told, or do not fit: labels that are regions, or of another number.
    """
    labels = dataset_description(weights).get("labels")
    if not isinstance(labels, Mapping):
        return []
    named = {name: value for name, value in labels.items() if name != "ignore"}
    whole = all(isinstance(n, str) and 0 < len(n) <= LONGEST and type(v) is int for n, v in named.items())
    if not whole or sorted(named.values()) != list(range(outputs)):
        return []
    return sorted(named, key=lambda name: named[name])[1:]


def head(weights: Weights, outputs: int) -> HeadInfo:
    """What a head of so many outputs predicts."""
    described = bool(dataset_description(weights))
    if not described and (openmind.PLAN in weights.records or outputs == 1):
        return HeadInfo(task=RECONSTRUCTION)
    configuration = _configuration(weights)
    patch = openmind.triple(configuration.get("patch_size"))
    modality = _modality(weights, configuration)
    return HeadInfo(task="segmentation", classes=classes(weights, outputs), patch=patch, modality=modality)


def facts(weights: Weights) -> dict[str, Any]:
    """Fields of ReleaseInfo that the plans of nnU-Net tell: patch, spacing, and intensities where we have the same."""
    configuration = _configuration(weights)
    fields: dict[str, Any] = {}
    if patch := openmind.triple(configuration.get("patch_size")):
        fields["crop_3d"] = patch
    spacing = configuration.get("spacing")
    order = entry(weights, "init_args", "plans", "transpose_forward")
    plain = list(order) == [0, 1, 2] if isinstance(order, list | tuple) else False
    if plain and isinstance(spacing, list | tuple) and len(spacing) == 3 and all(_positive(each) for each in spacing):
        fields["spacing_mm"] = tuple(float(each) for each in spacing)
    if _zscored(configuration):
        fields["intensity"] = openmind.WHOLE_SCAN
    return fields


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e3


def _configuration(weights: Weights) -> Mapping[Any, Any]:
    name = entry(weights, "init_args", "configuration")
    found = entry(weights, "init_args", "plans", "configurations", name) if isinstance(name, str) else None
    return found if isinstance(found, Mapping) else {}


def _zscored(configuration: Mapping[Any, Any]) -> bool:
    """Whether the one channel is z-scored over all voxels."""
    schemes, masked = configuration.get("normalization_schemes"), configuration.get("use_mask_for_norm")
    return schemes == ["ZScoreNormalization"] and masked == [False]


def _modality(weights: Weights, configuration: Mapping[Any, Any]) -> str:
    """The name of the one channel; 'unknown' where its voxels are not z-scored, which ours then are not alike."""
    names = dataset_description(weights).get("channel_names")
    values = list(names.values()) if isinstance(names, Mapping) else []
    if not _zscored(configuration) or len(values) != 1 or not isinstance(values[0], str):
        return "unknown"
    name = values[0].strip().lower()[:LONGEST]
    return "nonct" if name == "ct" else name
