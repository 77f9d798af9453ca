"""The teacher of a study: whether it fits, whom it was trained on, and its networks."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfoundry.backbones import find, read_about, read_release
from scanfoundry.backbones.models.release import PATIENTS, WEIGHTS
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.transfer.stem import with_channels
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.cases.cases import Case, CaseList
from scanfoundry.finetune.config.distil import DistilConfig
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.split import Split, TeacherPatients
from scanfoundry.finetune.training.distillation import Teacher

NEAR = 0.1  # of a spacing: so far a teacher's grid may differ, as a case's may that is not resampled


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher before anything is trained."""

    name: str  # without its folders
    weights_sha256: str
    intensity: IntensityConfig  # that it was trained with
    spec: Spec | None  # of a fine-tuned model
    patients: frozenset[str] | None  # hashes of the patients it has seen; None: not known
    cases: frozenset[str] | None  # keys of the cases it was fine-tuned on; None: not known
    sites: frozenset[str] | None  # fingerprints of the keys that its patients are hashed with; None: not known

    def recorded(self, config: DistilConfig) -> dict[str, Any]:
        """What a model's description and the report say of it."""
        softened = {"temperature": config.temperature} if config.what == "logits" else {}
        told = {"name": self.name, "weights_sha256": self.weights_sha256, "what": config.what, "weight": config.weight}
        return told | softened


def read_teacher(config: DistilConfig) -> TeacherFacts | None:
    """Read the description of the teacher, where there is one.

    Raises:
        UserError: there is no such model, or it is damaged, or not fine-tuned where logits are wanted.
    """
    if config.teacher is None:
        return None
    path = find(config.teacher)
    if config.what == "features":
        info, patients = read_about(config.teacher)
        known = bool(patients) or not info.sources
        sites = info.sites
        return TeacherFacts(
            path.name,
            info.weights_sha256,
            IntensityConfig.model_validate(info.intensity),
            None,
            frozenset(patients) if patients or info.patient_free else None,
            None,
            sites if known and sites else None,
        )
    spec = load_model(path)[0].spec
    folder = path if path.is_dir() else path.parent
    cases = _cases_of(folder / "results.json")
    if not (folder / PATIENTS).is_file():  # an export without the list
        return TeacherFacts(folder.name, sha256_of(folder / WEIGHTS), spec.intensity, spec, None, cases, None)
    info, patients = read_about(folder)
    sites = info.sites
    return TeacherFacts(
        folder.name, info.weights_sha256, spec.intensity, spec, frozenset(patients), cases, sites or None
    )


def _cases_of(results: Path) -> frozenset[str] | None:
    """Keys of all cases that a study has trained on; None where it left no results."""
    try:
        trials = json.loads(results.read_text(encoding="utf-8"))["cells"]
        return frozenset(key for trial in trials for key in trial["train_cases"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def without_teachers_patients(
    config: FinetuneConfig, facts: TeacherFacts | None, sides: Split, found: CaseList
) -> TeacherPatients | None:
    """How many patients the teacher was trained on, of those that are tested on and trained from.

    Raises:
        UserError: it was trained on a test patient, and that is not allowed.
    """
    if facts is None:
        return None
    test, pool = (_shared(side, facts.patients or (), facts.cases or ()) for side in (sides.test, sides.pool))
    if test and not config.split.allow_pretraining_overlap:
        raise UserError(
            f"{test} test patients were in the training of distil.teacher={config.distil.teacher}: train it with "
            f"split.test_fraction={config.split.test_fraction} of the same data, or set "
            "split.allow_pretraining_overlap=true (stated in the report)"
        )
    known = facts.cases is not None or facts.patients is not None
    return TeacherPatients(test, pool, known and facts.sites in (None, {found.site}))


def _shared(side: Sequence[Case], patients: Collection[str], cases: Collection[str]) -> int:
    return len({case.patient for case in side if case.patient in patients or case.key in cases})


def check_teacher(facts: TeacherFacts | None, spec: Spec) -> None:
    """Raise UserError where a teacher would see other scans than those that it was trained on, or has other classes."""
    if facts is None:
        return
    if facts.intensity != spec.intensity:
        raise UserError(
            f"distil.teacher {facts.name} was trained on other intensities ({facts.intensity}) than the student's "
            f"checkpoint ({spec.intensity}): take another teacher, or train the student without a checkpoint"
        )
    theirs = facts.spec
    if theirs is None:
        return
    compared: tuple[tuple[str, object, object], ...] = (
        ("task", spec.task.name, theirs.task.name),
        ("classes", spec.classes, theirs.classes),
        ("channels", spec.channels, theirs.channels),
        ("input channels", spec.backbone.in_channels, theirs.backbone.in_channels),
        ("dimensions", 2 if spec.plan.is_2d else 3, 2 if theirs.plan.is_2d else 3),
    )
    for what, mine, other in compared:
        if mine != other:
            raise UserError(f"distil.teacher {facts.name} has {what} {other}, this study {mine}: take another teacher")
    pairs = list(zip(spec.plan.spacing, theirs.plan.spacing, strict=True))
    if spec.task.windows and any(abs(ours - known) > NEAR * known for ours, known in pairs):
        wanted = ",".join(f"{known:g}" for _, known in pairs)
        raise UserError(
            f"distil.teacher {facts.name} sees voxels of {wanted} mm, this study others: set plan.spacing=[{wanted}]"
        )


def load_teacher(config: DistilConfig, spec: Spec) -> Teacher:
    """The networks of the teacher, on the CPU.

    Raises:
        UserError: it cannot be read, or cannot take the study's patches.
    """
    assert config.teacher is not None
    if config.what == "logits":
        adapter, networks = load_model(find(config.teacher))
        build(adapter.spec.backbone).check_input(spec.plan.patch)
        return Teacher(config, networks)
    release = read_release(config.teacher)
    state, backbone = with_channels(release.encoder, release.info.backbone, spec.backbone.in_channels)
    encoder = build(backbone)
    encoder.load_state_dict(state)
    encoder.check_input(spec.plan.patch)
    return Teacher(config, [encoder])
