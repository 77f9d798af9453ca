"""The `model.json` of a model on disk: what someone needs to use its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError

FORMAT_VERSION: Literal[2] = 2  # of 1 the weights are an encoder's alone, without the name of the part
RECONSTRUCTION = "reconstruction"  # the task of a head that predicts voxels


class SourceRecord(Config):
    """One data source of the pre-training and the sha256 of its manifest."""

    name: str
    manifest_sha256: str
    site: str = ""  # fingerprint of the key that its patients are hashed with
    scans: int | None = None
    synthetic: bool = False  # its scans were drawn: it has no patients


class HeadInfo(Config):
    """What the outputs of the part `head` are."""

    task: str  # the name of a fine-tuning task, or RECONSTRUCTION
    classes: list[str] = []  # without the background
    patch: tuple[int, int, int] | None = None  # (D, H, W) in voxels that it predicts at a time
    modality: str = "unknown"  # that scans are normalised as


class ReleaseInfo(Config):
    """All that someone needs to use the weights: architecture, preprocessing, origin, terms."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    format_version: Literal[1, 2] = FORMAT_VERSION
    backbone: BackboneConfig
    parts: tuple[Part, ...] = ("encoder",)
    head: HeadInfo | None = None  # of the part of that name
    objective: str | None = None
    step: int = 0
    averaged: float | None = None  # momentum, where the weights are an exponential moving average over the steps
    intensity: dict[str, Any] = Field(default_factory=dict)  # the IntensityConfig of the pre-training, as JSON
    crop_2d: tuple[int, int] | None = None
    crop_3d: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None  # (D, H, W) that it was trained at, where that is one
    axis_order: Literal["D,H,W"] = "D,H,W"
    sources: tuple[SourceRecord, ...] = ()
    patients: int = 0  # lines of patients.txt: keyed hashes of the patients trained on
    patients_withheld: int = 0  # trained on, but left out of patients.txt of this copy: overlap cannot be checked
    licence: str = ""
    citation: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    patient_free: bool = False  # all that the weights have seen was drawn
    weights_sha256: str = ""  # filled in by save_release
    patients_sha256: str = ""  # filled in by save_release

    @property
    def sites(self) -> frozenset[str]:
        """The fingerprints of the keys that patients of its sources are hashed with."""
        return frozenset(source.site for source in self.sources if not source.synthetic)


def read_info(path: Path) -> ReleaseInfo:
    """Read and check a `model.json`.

    Raises:
        UserError: it is corrupt or of another format version.
    """
    raw = read_description(path)
    version = raw.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise UserError(
            f"{path} has format version {version}, this scanfoundry reads 1 and {FORMAT_VERSION}; "
            "install the scanfoundry that wrote it"
        )
    try:
        return ReleaseInfo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; copy or download the release again") from error


def read_description(path: Path) -> dict[str, Any]:
    """The content of a `model.json`, not checked.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download the release again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} describes no model; copy or download the release again")
    return raw


def is_finetuned(content: Mapping[str, Any]) -> bool:
    """Whether a `model.json` describes a fine-tuned model."""
    return content.get("kind") == "finetuned"


def finetuned_info(path: Path, content: Mapping[str, Any]) -> ReleaseInfo:
    """What the `model.json` of a fine-tuned model says, in the terms of a release.

    Raises:
        UserError: it is of another format version, or corrupt.
    """
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} is a fine-tuned model of format version {content.get('format_version')}, whose weights have no "
            "parts: it predicts, but nothing can start from it; fine-tune it again"
        )
    try:
        task, plan, names = content["task"]["name"], content["plan"], content["classes"]
        patch = tuple(plan["patch"])
        crop = {"crop_2d": patch[1:]} if patch[0] == 1 else {"crop_3d": patch, "spacing_mm": plan["spacing"]}
        facts = {
            "backbone": content["backbone"],
            "head": {"task": task, "classes": names, "patch": patch, "modality": content["modality"]},
            "objective": f"fine-tuned: {task}",
            "intensity": content["intensity"],
            **crop,
            **content["origin"],
            "weights_sha256": content["weights_sha256"],
        }
        return ReleaseInfo.model_validate(json.loads(json.dumps(facts)))
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is a broken description ({reason}); copy or download the model again") from error
