"""The model card of a pre-trained model: written from facts, and plain about what nobody recorded."""

import json
import re

import torch

from scanfoundry.backbones.models.description import RECONSTRUCTION, ReleaseInfo
from scanfoundry.backbones.registry import build
from scanfoundry.finetune.export.escaping import for_markdown
from scanfoundry.launch.zoo.card_parts import (
    LIMITS,
    CardFacts,
    citation,
    describe_backbone,
    header,
    intended_use_sentence,
    join_paragraphs,
    licence_sentence,
    metrics_table,
    patients_sentence,
    sizes_text,
)


def encoder_card(info: ReleaseInfo, facts: CardFacts, figures: list[str]) -> str:
    """The card of a pre-trained model, of whatever parts."""
    backbone = info.backbone.model_dump(mode="json")
    what = "encoder" if info.parts == ("encoder",) else "model"
    tags = ["medical-imaging", "pre-training", backbone["name"], *_words(info.objective)]
    return join_paragraphs(
        header(facts, tags, "image-feature-extraction"),
        f"# {for_markdown(facts.name)}",
        f"A pre-trained {what} for medical scans: {describe_backbone(backbone)}, objective "
        f"{for_markdown(info.objective or 'unknown')}, {info.step or 'an unknown number of'} steps{_averaged(info)}. "
        f"{_parts(info)}",
        "## Training data",
        *_sources(info),
        patients_sentence(info.patients, info.patients_withheld),
        "## Use",
        intended_use_sentence(facts, "fine-tuning and features in research"),
        LIMITS,
        *_limits(info),
        "## Load",
        "```python\n" + _loading(info, facts.repository) + "\n```",
        f"`init: {facts.name}` in a pre-training and `checkpoint={facts.name}` in a fine-tuning take the folder too.",
        "## Preprocessing",
        *_preprocessing(info),
        "## Numbers",
        *metrics_table(figures),
        "## Licence and citation",
        licence_sentence(facts),
        citation(facts),
        "## Files",
        f"`model.safetensors` (sha256 `{info.weights_sha256}`), `model.json` (architecture, preprocessing, origin), "
        f"`patients.txt` (sha256 `{info.patients_sha256}`); all sums are in `SHA256SUMS`.",
        _versions(info.versions),
    )


def _words(objective: str | None) -> list[str]:
    return re.findall(r"[a-z][a-z_]+", objective.lower()) if objective and ":" not in objective else []


def _averaged(info: ReleaseInfo) -> str:
    momentum = info.averaged
    return f", weights averaged over the steps (momentum {momentum:g})" if momentum is not None else ""


def _sources(info: ReleaseInfo) -> list[str]:
    if not info.sources:
        return ["Which data it was trained on is not recorded."]
    lines = ["| source | scans | sha256 of its manifest |", "|---|---|---|"]
    for source in info.sources:
        scans = "drawn" if source.synthetic else "not recorded" if source.scans is None else source.scans
        lines.append(f"| {for_markdown(source.name)} | {scans} | `{source.manifest_sha256}` |")
    return ["\n".join(lines)]


def _parts(info: ReleaseInfo) -> str:
    """Which parts the weights have, and what can be done with them as they are."""
    listed = f"Its parts: {', '.join(info.parts)}."
    head = info.head if "head" in info.parts else None
    if head is None or head.task == RECONSTRUCTION:
        without = "It has no head" if head is None else "Its head reconstructs voxels"
        return f"{listed} {without}: fine-tune it, or take its features."
    names = ", ".join(map(for_markdown, head.classes)) or "not named"
    return f"{listed} The head is of {for_markdown(head.task)}; its classes ({len(head.classes)}): {names}."


def _limits(info: ReleaseInfo) -> list[str]:
    said = "How it does on other devices, protocols, body parts or populations than those of its data is not known."
    return [said] if info.sources else [f"{said} Its data are not recorded."]


def _loading(info: ReleaseInfo, repository: str) -> str:
    shape = info.crop_3d or ((1, *info.crop_2d) if info.crop_2d else None)
    if shape is None:
        d, h, w = _divisor(info)
        shape = (2 * d, 2 * h, 2 * w)
    channels = info.backbone.in_channels
    return "\n".join(
        [
            "import torch",
            "",
            "import scanfoundry.backbones",
            "",
            f'folder = "."  # this folder; from the hub: huggingface_hub.snapshot_download({json.dumps(repository)})',
            "encoder, info = scanfoundry.backbones.load(folder)",
            f"scans = torch.zeros(1, {channels}, {', '.join(map(str, shape))})  # (B, C, D, H, W), preprocessed",
            "maps = encoder.eval()(scans)  # feature maps, finest first",
            "vector = encoder.pooled(scans)  # (B, F)",
        ]
    )


def _divisor(info: ReleaseInfo) -> tuple[int, int, int]:
    with torch.device("meta"):
        return build(info.backbone).size_divisor(False)


def _preprocessing(info: ReleaseInfo) -> list[str]:
    lines = [f"Axis order {info.axis_order}."]
    lines.append(f"Crops: {_crops(info)}.")
    spacing = f"{sizes_text(info.spacing_mm)} mm" if info.spacing_mm else "that of each scan, or not recorded"
    lines.append(f"Spacing (D, H, W): {spacing}.")
    intensity = f"```json\n{json.dumps(info.intensity, indent=1)}\n```" if info.intensity else "Not recorded."
    return [" ".join(lines), "Intensities (`datasets/intensity.py` of scanfoundry applies them):", intensity]


def _crops(info: ReleaseInfo) -> str:
    kinds = [f"{sizes_text(crop)} voxels" for crop in (info.crop_3d, info.crop_2d) if crop]
    return " and ".join(kinds) or "not recorded"


def _versions(versions: dict[str, str]) -> str:
    listed = ", ".join(f"{for_markdown(name)} {for_markdown(number)}" for name, number in versions.items())
    return f"Made with {listed}." if listed else ""
