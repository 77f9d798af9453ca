"""What checkpoints of nnssl (github.com/MIC-DKFZ/nnssl) say about themselves; OpenMind's releases are such files.

Wald et al. 2024, "An OpenMind for 3D medical vision self-supervised learning", arXiv 2412.17041. Beside
`network_weights` they hold `nnssl_adaptation_plan`: the architecture, the plan of the pre-training (spacing, patch,
normalisation) and where in the network the encoder is.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from scanfoundry.backbones.foreign.weights import Weights
from scanfoundry.configs.errors import UserError

PLAN = "nnssl_adaptation_plan"
UNKNOWN = "who trained it, on what and under which licence is not in the file"
# Z-scored voxels, extremes included.
UNCLIPPED: dict[str, Any] = {"percentiles": [0.0, 100.0]}
# The same, by the mean and deviation of all voxels and not of the foreground alone.
WHOLE_SCAN: dict[str, Any] = {**UNCLIPPED, "zscore": "scan"}
OPENMIND = re.compile(r"Dataset\d+_Open(Mind|Neuro)\w*")  # how the authors name their 114,000 volumes
CITATION = "Wald et al. 2024, An OpenMind for 3D medical vision self-supervised learning, arXiv 2412.17041"
LICENCE = "cc-by-4.0"  # on the model cards of the released checkpoints


def plan_entry(weights: Weights, *path: str) -> Any:
    """The entry of the adaptation plan at a path of keys; None where there is none."""
    value = weights.records.get(PLAN)
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def prefix_of(weights: Weights, *parts: str) -> str | None:
    """What stands before all of an encoder's `parts` (ends of keys, the plan's `key_to_encoder` first).

    None where no key ends so. The encoder of a U-Net has a second name within its decoder, and a network may hold
    copies: the plan says which one is meant, else it is the shortest name.
    """
    found = [key.removesuffix(parts[0]) for key in weights.tensors if key.endswith(parts[0])]
    found = [prefix for prefix in found if all(prefix + part in weights.tensors for part in parts)]
    entry = plan_entry(weights, "key_to_encoder")
    named = [
        prefix for prefix in found if isinstance(entry, str) and parts[0].startswith(entry.removeprefix(prefix) + ".")
    ]
    return min(named or found, key=len, default=None)


def triple(value: Any) -> tuple[int, int, int] | None:
    """Three positive whole numbers, where they are."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    d, h, w = value
    return (d, h, w) if all(type(n) is int and n > 0 for n in (d, h, w)) else None


def facts(weights: Weights, citation: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of ReleaseInfo, and notes; citation: of the architecture, for what is not OpenMind's."""
    fields: dict[str, Any] = {"citation": citation}
    plan = plan_entry(weights, "pretrain_plan", "configurations")
    configuration = next(iter(plan.values()), None) if isinstance(plan, Mapping) else None
    entry = configuration if isinstance(configuration, Mapping) else {}
    crop = triple(plan_entry(weights, "recommended_downstream_patchsize")) or triple(entry.get("patch_size"))
    if crop:
        fields["crop_3d"] = crop
    trainer = weights.records.get("trainer_name")
    if isinstance(trainer, str) and re.fullmatch(r"\w{1,120}", trainer):
        fields["objective"] = f"nnssl: {trainer}"
    notes = [*_preprocessing(entry, fields)]
    dataset = plan_entry(weights, "pretrain_plan", "dataset_name")
    if isinstance(dataset, str) and OPENMIND.fullmatch(dataset):
        fields |= {"citation": CITATION, "licence": LICENCE}
        notes.append(
            f"pre-trained on {dataset}: taken for the authors' OpenMind weights, which are {LICENCE} (name them, and "
            "say what you changed); they advise against using the features without fine-tuning"
        )
    else:
        notes.append(UNKNOWN)
    return fields, tuple(notes)


def _preprocessing(entry: Mapping[Any, Any], fields: dict[str, Any]) -> Iterable[str]:
    if entry.get("normalization_schemes") == ["ZScoreNormalization"]:
        fields["intensity"] = UNCLIPPED
        yield "it saw volumes cropped to what is not zero, z-scored over all voxels, not clipped"
    spacing = entry.get("spacing")
    if isinstance(spacing, list | tuple) and len(spacing) == 3 and all(isinstance(s, int | float) for s in spacing):
        yield "its volumes had a spacing of {:g} x {:g} x {:g} mm: fine-tune near it".format(*spacing)


def check_architecture(weights: Weights, known: tuple[str, ...]) -> None:
    """Raise UserError where the plan names another architecture than those known."""
    entry = plan_entry(weights, "architecture_plans", "arch_class_name")
    if entry is not None and entry not in known:
        raise UserError(f"{weights.path} says that it is a {str(entry)[:40]!r}; known are {', '.join(known)}")
