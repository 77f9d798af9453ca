"""The model card: written from facts, and silent or plain about what nobody recorded."""

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from scanforge.backbones.registry import build
from scanforge.backbones.release import ReleaseInfo

# Identifiers of the Hugging Face hub; any other licence is 'other' with its name.
HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "unlicense",
}  # fmt: skip
LIMITS = (
    "Not a medical device: not tested, cleared or approved for diagnosis, treatment or any other clinical use. "
    "It must not decide about patients."
)


@dataclass(frozen=True)
class Facts:
    """What the card says beside the description of the model."""

    name: str
    licence: str
    inherited: str
    intended_use: str
    citation: str


def encoder_card(info: ReleaseInfo, facts: Facts, figures: list[str]) -> str:
    """The card of a pre-trained encoder."""
    backbone = info.backbone.model_dump(mode="json")
    tags = ["medical-imaging", "pre-training", backbone["name"], *_words(info.objective)]
    return _card(
        _header(facts, tags, "image-feature-extraction"),
        f"# {facts.name}",
        f"A pre-trained encoder for medical scans: {_backbone(backbone)}, objective {info.objective or 'unknown'}, "
        f"{info.step or 'an unknown number of'} steps{_averaged(info)}. It has no head: fine-tune it, or take its "
        "features.",
        "## Training data",
        *_sources(info),
        _patients(info),
        "## Use",
        _intended(facts, "fine-tuning and features in research"),
        LIMITS,
        *_limits(info),
        "## Load",
        "```python\n" + _loading(info) + "\n```",
        f"`init: {facts.name}` in a pre-training and `checkpoint={facts.name}` in a fine-tuning take the folder too.",
        "## Preprocessing",
        *_preprocessing(info),
        "## Numbers",
        *_numbers(figures),
        "## Licence and citation",
        _licence(facts),
        facts.citation or "No citation was given.",
        "## Files",
        f"`model.safetensors` (sha256 `{info.weights_sha256}`), `model.json` (architecture, preprocessing, origin), "
        f"`patients.txt` (sha256 `{info.patients_sha256}`); all sums are in `SHA256SUMS`.",
        _versions(info.versions),
    )


def finetuned_card(described: dict[str, Any], facts: Facts, figures: list[str]) -> str:
    """The card of a fine-tuned model; `described` is its `model.json`."""
    task, plan = described["task"]["name"], described["plan"]
    trained = ", ".join(f"{key} {value}" for key, value in described.get("trained", {}).items()) or "not recorded"
    return _card(
        _header(facts, ["medical-imaging", task, described["backbone"]["name"]], _PIPELINES.get(task)),
        f"# {facts.name}",
        f"A model for {task} of {_modality(described['modality'])} scans, on {_backbone(described['backbone'])}. "
        f"Classes: {', '.join(described['classes']) or 'not named'}. Trained: {trained}.",
        "## Use",
        _intended(facts, "research on scans like those it was trained on"),
        LIMITS,
        "Nothing is known about scans of other devices, protocols or populations than those of its training. "
        "Which pre-trained weights it began from is not recorded in the run.",
        "## Load",
        "```\nscanforge predict --model FOLDER --input SCANS --out PREDICTIONS\n```",
        "## Preprocessing",
        f"Grid {_by(plan['spacing'])} mm, patches of {_by(plan['patch'])} (D, H, W). Intensities as `model.json` says; "
        "`scanforge predict` does all of it.",
        "## Numbers",
        *_numbers(figures),
        "## Licence and citation",
        _licence(facts),
        facts.citation or "No citation was given.",
        "## Files",
        f"`model.safetensors` (sha256 `{described['weights_sha256']}`) and `model.json`; all sums are in "
        "`SHA256SUMS`. There is no list of patients: who was trained on is not in the release.",
    )


_PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification",
              "detection": "object-detection"}  # fmt: skip


def _card(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(facts: Facts, tags: list[str], pipeline: str | None) -> str:
    header: dict[str, Any] = {}
    if facts.licence.lower() in HUB_LICENCES:
        header["license"] = facts.licence.lower()
    elif facts.licence:
        header |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", facts.licence.lower()).strip("-")}
    header |= {"library_name": "scanforge", "tags": sorted({tag.lower() for tag in tags})}
    if pipeline:
        header["pipeline_tag"] = pipeline
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip()}\n---"


def _words(objective: str | None) -> list[str]:
    return re.findall(r"[a-z][a-z_]+", objective.lower()) if objective and ":" not in objective else []


def _backbone(config: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {_by(v) if isinstance(v, list) else v}" for key, v in config.items() if key != "name")
    return f"`{config['name']}` ({rest})"


def _averaged(info: ReleaseInfo) -> str:
    momentum = getattr(info, "averaged", None)
    return f", weights averaged over the steps (momentum {momentum:g})" if momentum is not None else ""


def _sources(info: ReleaseInfo) -> list[str]:
    if not info.sources:
        return ["Which data it was trained on is not recorded."]
    lines = ["| source | scans | sha256 of its manifest |", "|---|---|---|"]
    for source in info.sources:
        scans = "not recorded" if source.scans is None else source.scans
        lines.append(f"| {source.name} | {scans} | `{source.manifest_sha256}` |")
    return ["\n".join(lines)]


def _patients(info: ReleaseInfo) -> str:
    if info.patients_withheld:
        return (
            f"The hashes of {info.patients_withheld} patients trained on are left out of this copy: whether a test "
            "patient was among them cannot be checked with it. Ask whoever published it."
        )
    if info.patients:
        return (
            f"`patients.txt` has keyed hashes (HMAC-SHA256) of the {info.patients} patients trained on. Without the "
            "site's key they name nobody; with it, `scanforge finetune` refuses to test on them."
        )
    return "Which patients it was trained on is not recorded."


def _intended(facts: Facts, otherwise: str) -> str:
    return facts.intended_use or f"No intended use was stated by whoever exported it; it was made for {otherwise}."


def _limits(info: ReleaseInfo) -> list[str]:
    said = "How it does on other devices, protocols, body parts or populations than those of its data is not known."
    return [said] if info.sources else [f"{said} Its data are not recorded."]


def _loading(info: ReleaseInfo) -> str:
    shape = info.crop_3d or ((1, *info.crop_2d) if info.crop_2d else None)
    if shape is None:
        d, h, w = _divisor(info)
        shape = (2 * d, 2 * h, 2 * w)
    channels = info.backbone.in_channels
    return "\n".join(
        [
            "import torch",
            "",
            "import scanforge.backbones",
            "",
            'folder = "."  # this folder; from the hub: huggingface_hub.snapshot_download("USER/NAME")',
            "encoder, info = scanforge.backbones.load(folder)",
            f"scans = torch.zeros(1, {channels}, {', '.join(map(str, shape))})  # (B, C, D, H, W), preprocessed",
            "maps = encoder.eval()(scans)  # feature maps, finest first",
            "vector = encoder.pooled(scans)  # (B, F)",
        ]
    )


def _divisor(info: ReleaseInfo) -> tuple[int, int, int]:
    import torch

    with torch.device("meta"):
        return build(info.backbone).size_divisor(False)


def _preprocessing(info: ReleaseInfo) -> list[str]:
    lines = [f"Axis order {info.axis_order}."]
    lines.append(f"Crops: {_crops(info)}.")
    spacing = f"{_by(info.spacing_mm)} mm" if info.spacing_mm else "that of each scan, or not recorded"
    lines.append(f"Spacing (D, H, W): {spacing}.")
    intensity = f"```json\n{json.dumps(info.intensity, indent=1)}\n```" if info.intensity else "Not recorded."
    return [" ".join(lines), "Intensities (`datasets/intensity.py` of scanforge applies them):", intensity]


def _crops(info: ReleaseInfo) -> str:
    kinds = [f"{_by(crop)} voxels" for crop in (info.crop_3d, info.crop_2d) if crop]
    return " and ".join(kinds) or "not recorded"


def _by(sizes: Any) -> str:
    return " x ".join(_by(size) if isinstance(size, list | tuple) else f"{size:g}" for size in sizes)


def _modality(name: str) -> str:
    return "unknown" if name == "unknown" else name.upper()


def _numbers(figures: list[str]) -> list[str]:
    return ["\n".join(figures)] if figures else ["None were measured or given."]


def _licence(facts: Facts) -> str:
    own = f"Licence: {facts.licence}." if facts.licence else "No licence was given: ask before you use it."
    return f"{own} It started from weights under: {facts.inherited}." if facts.inherited else own


def _versions(versions: dict[str, str]) -> str:
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"Made with {listed}." if listed else ""
