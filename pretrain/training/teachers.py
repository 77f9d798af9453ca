"""The teachers of a run: their weights before the first step, and what its release owes to them."""

from typing import Any

from pydantic import Field

from scanfoundry.backbones import read_release
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.transfer.stem import with_channels
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.objectives import Objective
from scanfoundry.pretrain.training.initialize import Origin, read_record

RECORD = "teachers.json"


class Taught(Config):
    """What the teachers hand on; kept in the run's folder, since their files may be others when the run continues."""

    names: list[str] = Field(default_factory=list)
    licence: str = ""
    citation: str = ""
    patients: list[str] = Field(default_factory=list)  # hashes of those whom they have seen


def bring_teachers(config: PretrainConfig, objective: Objective, fresh: bool) -> Taught:
    """Put the released weights into the teachers of an objective; a run that continues has them in its checkpoint.

    Raises:
        UserError: there is no such model, or it was trained on other intensities.
    """
    teachers = objective.teachers()
    if not teachers:
        return Taught()
    if not fresh:
        return read_record(Taught, config.run_dir / RECORD, "the run's teachers")
    found = {name: read_release(name) for name in teachers}
    for name, release in found.items():
        _check_intensity(config, name, release.info)
        state, _ = with_channels(release.encoder, release.info.backbone, teachers[name].in_channels)
        teachers[name].load_state_dict(state)
    return Taught(
        names=list(found),
        licence="; ".join(each.info.licence for each in found.values() if each.info.licence),
        citation="; ".join(each.info.citation for each in found.values() if each.info.citation),
        patients=sorted({patient for release in found.values() for patient in release.patients}),
    )


def record_teachers(config: PretrainConfig, taught: Taught) -> None:
    """Keep what the teachers hand on in the run folder."""
    if taught.names:
        write_text(config.run_dir / RECORD, taught.model_dump_json(indent=1) + "\n")


def with_teachers(origin: Origin, taught: Taught) -> Origin:
    """The origin of a run's knowledge: that of its first weights, and its teachers."""
    if not taught.names:
        return origin

    def joined(own: str, theirs: str) -> str:
        return "; ".join(part for part in (own, theirs and f"of its teacher: {theirs}") if part)

    return origin.model_copy(
        update={
            "summary": f"{origin.summary}, with the teacher {' and '.join(taught.names)}",
            "licence": joined(origin.licence, taught.licence),
            "citation": joined(origin.citation, taught.citation),
            "patients": sorted({*origin.patients, *taught.patients}),
        }
    )


def _check_intensity(config: PretrainConfig, name: str, info: ReleaseInfo) -> None:
    theirs: dict[str, Any] = info.intensity
    if theirs and IntensityConfig.model_validate(theirs) != config.data.intensity:
        raise UserError(
            f"the teacher {name} was trained on other intensities; set data.intensity as its model.json says: {theirs}"
        )
