"""The weights that a run starts from, random ones or those of `init`, and what its release owes to their origin."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from scanfoundry.backbones import find, is_release
from scanfoundry.backbones.foreign import load_foreign_parts
from scanfoundry.backbones.foreign.loading import recognise
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.parts import Parts
from scanfoundry.backbones.models.release import Release, load_release
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.transfer.adapt import adapted, advice
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.objectives.protocol import Objective

RECORD = "init.json"


class Origin(Config):
    """The origin of a run's first weights; kept in its folder, since the file may be gone when the run continues."""

    summary: str = Field(validation_alias="said", serialization_alias="said")  # one line; "said" in the file
    licence: str = ""
    citation: str = ""
    patients: list[str] = Field(default_factory=list)  # hashes of those whom the weights have seen


@dataclass(frozen=True)
class Start:
    """The run's encoder with its first weights, their origin, and the other parts of the model they are from."""

    encoder: Encoder
    origin: Origin
    parts: Parts = field(default_factory=dict)

    def fill(self, objective: Objective) -> Origin:
        """Give the objective's decoder and head the weights of the model, where it trains the same ones.

        Returns:
            The origin, which says what was used and what was left.
        """
        trained, fates = objective.trained_parts(), []
        for part, weights in self.parts.items():
            module = objective.get_submodule(trained[part]) if part in trained else None
            fits = module is not None and _shapes(module.state_dict()) == _shapes(weights)
            if module is not None and fits:
                module.load_state_dict(weights)
            fates.append(f"its {part} is {'used too' if fits else 'left: the objective does not train such a one'}")
        return self.origin.model_copy(update={"summary": "; ".join((self.origin.summary, *fates))})


def start_encoder(config: PretrainConfig, fresh: bool) -> Start:
    """What the run starts from; a run that continues (not `fresh`) reads no `init` again.

    Raises:
        UserError: the weights of `init` are not of the run's backbone.
    """
    encoder = build(config.backbone)
    if config.init is None:
        return Start(encoder, _origin("starting from random weights"))
    if not fresh:
        return Start(encoder, read_record(Origin, config.run_dir / RECORD, "the weights of `init`"))
    given, origin = _adapted(config, config.init, *_load(config, config.init))
    _check_fit(config, config.init, given, encoder)
    encoder.load_state_dict(given.encoder)
    return Start(encoder, origin, {part: weights for part, weights in given.parts.items() if part != "encoder"})


def record(config: PretrainConfig, origin: Origin) -> None:
    """Keep the origin of `init` in the run folder."""
    if config.init is not None:
        write_text(config.run_dir / RECORD, origin.model_dump_json(indent=1, by_alias=True) + "\n")


Recorded = TypeVar("Recorded", bound=Config)


def read_record(kind: type[Recorded], path: Path, of: str) -> Recorded:
    """What an earlier start kept in the run folder; `of`: whose patients it names.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return kind.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, which says whom {of} had seen, cannot be read ({error}); restore it, or choose a new run_dir"
        ) from error


def _load(config: PretrainConfig, name: str) -> tuple[Release, Origin]:
    """The weights of a release, or of a file of others, whose options the run's backbone sets."""
    path = find(name)
    if is_release(path):
        release = load_release(path)
        return release, _origin(f"starting from {name}", release.info, release.patients)
    options = {"in_channels", *recognise(read_weights(path)).options}
    chosen = {key: getattr(config.backbone, key) for key in sorted(options) if hasattr(config.backbone, key)}
    parts, info, report = load_foreign_parts(path, **chosen)
    return Release(parts, info, []), _origin(f"starting from {report}", info, [])


def _adapted(config: PretrainConfig, name: str, given: Release, origin: Origin) -> tuple[Release, Origin]:
    """The weights as `adapt` says, and their origin, which says so; or what should be said of them."""
    images, volumes = config.data.crop_2d is not None, config.data.crop_3d is not None
    changed, how = adapted(given, config.adapt, config.backbone, images, volumes, f"init {name}")
    said = f"adapted: {how}" if how else advice(given.info, config.adapt, volumes, "it")
    return changed, origin.model_copy(update={"summary": "; ".join(filter(None, (origin.summary, said)))})


def _origin(summary: str, info: ReleaseInfo | None = None, patients: Iterable[str] = ()) -> Origin:
    terms = {} if info is None else {"licence": info.licence, "citation": info.citation}
    return Origin.model_validate({"said": summary, **terms, "patients": list(patients)})


def _check_fit(config: PretrainConfig, name: str, given: Release, encoder: Encoder) -> None:
    """UserError, naming the first difference that matters, where weights are of another backbone than the run's."""
    theirs = given.info.backbone
    if key := config.backbone.differs_in(theirs):
        raise UserError(
            f"init {name} has backbone.{key} {getattr(theirs, key, None)}, the run's is "
            f"{getattr(config.backbone, key, None)}; set backbone.{key} to that of the weights, or start from other "
            "weights"
        )
    if _shapes(given.encoder) != _shapes(encoder.state_dict()):
        raise UserError(f"init {name} has other weights than the run's backbone; set backbone as its model.json says")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items()}
