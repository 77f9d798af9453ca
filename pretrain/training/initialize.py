"""The weights that a run starts from, random ones or those of `init`, and what its release owes to their origin."""

import json
from collections.abc import Iterable

from pydantic import Field

from scanfoundry.backbones import find, is_release
from scanfoundry.backbones.foreign import load_foreign
from scanfoundry.backbones.foreign.loading import recognise
from scanfoundry.backbones.foreign.weights import read_weights
from scanfoundry.backbones.models.release import Release, ReleaseInfo, load_release
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text
from scanfoundry.pretrain.config.run import PretrainConfig

RECORD = "init.json"


class Origin(Config):
    """The origin of a run's first weights; kept in its folder, since the file may be gone when the run continues."""

    summary: str = Field(validation_alias="said", serialization_alias="said")  # one line; "said" in the file
    licence: str = ""
    citation: str = ""
    patients: list[str] = Field(default_factory=list)  # hashes of those whom the weights have seen


def start_encoder(config: PretrainConfig, fresh: bool) -> tuple[Encoder, Origin]:
    """The run's encoder, and where its weights are from; a run that continues (not `fresh`) reads no `init` again.

    Raises:
        UserError: the weights of `init` are not of the run's backbone.
    """
    encoder = build(config.backbone)
    if config.init is None:
        return encoder, _origin("starting from random weights")
    if not fresh:
        return encoder, _recorded(config)
    given, origin = _load(config, config.init)
    _check_fit(config, config.init, given, encoder)
    encoder.load_state_dict(given.state_dict)
    return encoder, origin


def record(config: PretrainConfig, origin: Origin) -> None:
    """Keep the origin of `init` in the run folder."""
    if config.init is not None:
        write_text(config.run_dir / RECORD, origin.model_dump_json(indent=1, by_alias=True) + "\n")


def _recorded(config: PretrainConfig) -> Origin:
    path = config.run_dir / RECORD
    try:
        return Origin.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, which says whom the weights of `init` had seen, cannot be read ({error}); "
            "restore it, or choose a new run_dir"
        ) from error


def _load(config: PretrainConfig, name: str) -> tuple[Release, Origin]:
    """The weights of a release, or of a file of others, whose options the run's backbone sets."""
    path = find(name)
    if is_release(path):
        release = load_release(path)
        return release, _origin(f"starting from {name}", release.info, release.patients)
    options = {"in_channels", *recognise(read_weights(path)).options}
    chosen = {key: getattr(config.backbone, key) for key in sorted(options) if hasattr(config.backbone, key)}
    encoder, info, report = load_foreign(path, **chosen)
    return Release(encoder.state_dict(), info, []), _origin(f"starting from {report}", info, [])


def _origin(summary: str, info: ReleaseInfo | None = None, patients: Iterable[str] = ()) -> Origin:
    terms = {} if info is None else {"licence": info.licence, "citation": info.citation}
    return Origin.model_validate({"said": summary, **terms, "patients": list(patients)})


def _check_fit(config: PretrainConfig, name: str, given: Release, encoder: Encoder) -> None:
    """UserError, naming the first difference that matters, where weights are of another backbone than the run's."""
    theirs, mine = given.info.backbone.model_dump(), config.backbone.model_dump()
    for key in theirs.keys() | mine.keys() if theirs["name"] == mine["name"] else ("name",):
        if key not in config.backbone.not_of_weights and theirs.get(key) != mine.get(key):
            raise UserError(
                f"init {name} has backbone.{key} {theirs.get(key)}, the run's is {mine.get(key)}; "
                f"set backbone.{key} to that of the weights, or start from other weights"
            )
    shapes = {key: value.shape for key, value in given.state_dict.items()}
    if shapes != {key: value.shape for key, value in encoder.state_dict().items()}:
        raise UserError(f"init {name} has other weights than the run's backbone; set backbone as its model.json says")
