"""`scanfoundry models export`: from a run to a folder that can be given away, with a card that says what it is."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from scanfoundry.backbones.models.release import INFO, PATIENTS, WEIGHTS, Release, load_release, save_release
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of, write_json
from scanfoundry.finetune.export.folder import new_folder
from scanfoundry.launch.zoo.card import encoder_card
from scanfoundry.launch.zoo.card_finetuned import finetuned_card
from scanfoundry.launch.zoo.card_parts import CardFacts
from scanfoundry.launch.zoo.metrics import table_of_file, table_of_run
from scanfoundry.pretrain.checkpoint.checkpoint import SEAL, unchanged, verified_step
from scanfoundry.pretrain.checkpoint.state_files import StateFiles
from scanfoundry.pretrain.training.release import released_prefixes, without

CARD, SUMS = "README.md", "SHA256SUMS"
FILES = (WEIGHTS, INFO, PATIENTS, CARD, SUMS)  # all that a release may hold
_INHERITED = "of the weights it started from: "  # how pretrain/training/release.py hands terms on
_NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?commercial", re.IGNORECASE)


@dataclass(frozen=True)
class ReleaseTerms:
    """What the user says of the release."""

    licence: str | None = None  # None: the run's
    intended_use: str = ""
    citation: str | None = None
    metrics: Path | None = None
    with_patients: bool = True


@dataclass(frozen=True)
class Exported:
    """A release folder, and what pushing it must know."""

    folder: Path
    licence: str  # '' where none is known
    inherited: str  # terms of the weights that it started from


def load_run(run: Path) -> Release:
    """The model of a pre-training run, with its description and patients: what a release is made of.

    Args:
        run: its folder, whose `model.safetensors` is read, or one of its checkpoints, of which the weights alone are.

    Raises:
        UserError: the run has written no model yet.
    """
    folder = run if run.is_dir() else run.parent
    if (folder / SEAL).is_file():
        return _of_checkpoint(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: a run writes it when it ends; finish it, then export it")
    return load_release(folder)


def _of_checkpoint(folder: Path) -> Release:
    """The weights of a checkpoint; what they are, and whom they have seen, stands beside the run's model."""
    described = load_run(folder.parent.parent)
    with unchanged(folder):
        step = verified_step(folder)
        with StateFiles(folder) as files:
            trained = files.state["extra"].get("parts", {"encoder": "encoder"})
            prefixes = released_prefixes(trained, described.info.averaged is not None)
            parts = {part: without(prefix, files.weights(prefix)) for part, prefix in prefixes.items()}
    info = described.info.model_copy(update={"step": step})
    return Release(parts, info, described.patients)


def export(run: Path, out: Path, terms: ReleaseTerms, repository: str | None = None) -> Exported:
    """Write the release of a run, of a pre-training or a fine-tuning, into a new folder.

    Args:
        run: the run's folder, one of its checkpoints, or a file in either.
        out: the new folder; until it is whole, it does not exist.
        terms: what the user says of the release.
        repository: USER/NAME on the hub, where it shall be published.

    Raises:
        UserError: the run has no whole model, `out` holds something, or the terms forbid to publish it.
    """
    with new_folder(out, ", or, where it is an earlier export, --push alone") as part:
        exported = _written(run, part, terms, repository or out.name)
        if repository:
            check_terms(exported)
    return Exported(out.absolute(), exported.licence, exported.inherited)


def _written(run: Path, part: Path, terms: ReleaseTerms, name: str) -> Exported:
    folder = run if run.is_dir() else run.parent
    facts = CardFacts(name.rpartition("/")[2], "", "", terms.intended_use, "", name if "/" in name else "USER/NAME")
    figures = table_of_file(terms.metrics) if terms.metrics else table_of_run(folder)
    if _kind(folder) == "finetuned":
        licence, inherited = terms.licence or "", ""
        stated = replace(facts, licence=licence, citation=terms.citation or "")
        card = _finetuned(folder, part, stated, figures, terms.with_patients)
    else:
        release = load_run(folder)
        own, inherited = split_licence(release.info.licence)
        licence, citation = terms.licence or own, release.info.citation
        said = "; ".join(filter(None, (licence, inherited and _INHERITED + inherited)))
        update = {"licence": said, "citation": citation if terms.citation is None else terms.citation}
        info = release.info.model_copy(update=update)
        if not terms.with_patients:
            sources = tuple(source.model_copy(update={"site": ""}) for source in info.sources)
            withheld = info.patients_withheld + len(release.patients)
            info = info.model_copy(update={"sources": sources, "patients_withheld": withheld})
        save_release(part, release.parts, info, release.patients if terms.with_patients else [])
        written = load_release(part).info
        stated = replace(facts, licence=licence, inherited=inherited, citation=written.citation)
        card = encoder_card(written, stated, figures)
    (part / CARD).write_text(card, encoding="utf-8")
    sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(part.iterdir())]
    (part / SUMS).write_text("".join(sums))
    return Exported(part, licence, inherited)


def _finetuned(folder: Path, part: Path, facts: CardFacts, figures: list[str], with_patients: bool) -> str:
    from scanfoundry.finetune.model_file import load_model

    load_model(folder)  # whole, and of a version that can be read
    files = [name for name in (WEIGHTS, INFO, PATIENTS) if (folder / name).is_file()]
    for name in files:  # models of the first version have no list of patients
        shutil.copyfile(folder / name, part / name)
    described: dict[str, Any] = json.loads((part / INFO).read_text(encoding="utf-8"))
    if PATIENTS in files and not with_patients:
        _withhold(part, described)
    load_model(part)  # what was copied, should a study have ended meanwhile
    if PATIENTS in files:
        load_release(part)
    return finetuned_card(described, facts, figures)


def _withhold(part: Path, described: dict[str, Any]) -> None:
    """Leave the patients out of a copy, which then says how many they were."""
    origin = described["origin"]
    withheld = origin.get("patients_withheld", 0) + origin["patients"]
    sources = [source | {"site": ""} for source in origin["sources"]]
    (part / PATIENTS).write_text("")
    left_out = {"sources": sources, "patients": 0, "patients_withheld": withheld}
    described["origin"] = origin | left_out | {"patients_sha256": sha256_of(part / PATIENTS)}
    write_json(part / INFO, described)


def _kind(folder: Path) -> str:
    try:
        described = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "unknown"  # `load_run` says what is wrong
    return str(described.get("kind", "")) if isinstance(described, dict) else "unknown"


def split_licence(text: str) -> tuple[str, str]:
    """A run's own licence, and that of the weights it started from."""
    own, _, inherited = text.partition(_INHERITED)
    return own.strip().rstrip(";").strip(), inherited.strip()


def check_terms(exported: Exported) -> None:
    """UserError where a release must not be published: no licence, or one that drops the terms it inherited."""
    if not exported.licence:
        raise UserError(
            "a release without a licence is not pushed: nobody could use it; "
            "say --licence, e.g. apache-2.0 or cc-by-4.0"
        )
    if _NON_COMMERCIAL.search(exported.inherited) and not _NON_COMMERCIAL.search(exported.licence):
        raise UserError(
            f"the release is not pushed as {exported.licence}: the weights it started from are under "
            f"{exported.inherited}, which forbids commercial use; say --licence {exported.inherited}"
        )


def exported_before(out: Path) -> Exported | None:
    """The release that an earlier `export` left in a folder, card edited or not; None where there is none."""
    if not all((out / name).is_file() for name in (WEIGHTS, INFO, CARD, SUMS)):
        return None
    from huggingface_hub import metadata_load

    try:
        fields = metadata_load(out / CARD) or {}
        described = json.loads((out / INFO).read_text(encoding="utf-8"))
        licence = str(fields.get("license_name") or fields.get("license") or "")
        return Exported(out, licence, split_licence(str(described.get("licence", "")))[1])
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{out}: {CARD} or {INFO} cannot be read; mend it, or export into a new folder") from error
