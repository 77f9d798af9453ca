"""A weighted sum of objectives on one backbone."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, cast

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.protocol import Encoder, Family
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions
from scanfoundry.pretrain.objectives.registry import SingleConfig


class TermConfig(Config):
    """One objective of the sum; its metrics and pictures carry `name`, by default the objective's."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    weight: Annotated[float, Field(gt=0)] = 1.0
    objective: SingleConfig
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] | None = None

    @property
    def title(self) -> str:
        """The term's name."""
        return self.name or self.objective.name


class SumConfig(ObjectiveOptions):
    """loss = sum of weight * loss over the terms."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    name: Literal["sum"] = "sum"
    terms: Annotated[list[TermConfig], Field(min_length=1)]

    @property
    def label(self) -> str:
        """Its terms: '1 mae + 0.5 contrastive'."""
        return " + ".join(f"{term.weight:g} {term.objective.label}" for term in self.terms)

    @property
    def compares_samples(self) -> bool:
        """Whether any of its terms does."""
        return any(term.objective.compares_samples for term in self.terms)

    @model_validator(mode="after")
    def _names_differ(self) -> "SumConfig":
        titles = [term.title for term in self.terms]
        if len(set(titles)) < len(titles):
            raise ValueError(f"two terms have the same name ({', '.join(titles)}); give each its own `name`")
        return self

    def filled(self, family: Family) -> Self:
        """With every term's objective filled in."""
        terms = [t.model_copy(update={"objective": t.objective.filled(family)}) for t in self.terms]
        return self.model_copy(update={"terms": terms})

    def build(self, encoder: Encoder) -> "WeightedSum":
        """The sum on an encoder.

        Raises:
            UserError: a term does not go with it.
        """
        return WeightedSum(self, encoder)


class WeightedSum(Objective):
    """Every term sees the same views (the first ones, where it takes fewer) through the same encoder."""

    def __init__(self, config: SumConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.terms = nn.ModuleDict()
        for term in config.terms:
            objective = term.objective.build(encoder)
            # The sum owns the encoder: a second owner would write its weights into the state dict once more.
            del objective.encoder
            objective.__dict__["encoder"] = encoder
            self.terms[term.title] = objective
        self.clean = any(objective.clean for _, _, objective in self._weighted())
        self.needs_depth = any(objective.needs_depth for _, _, objective in self._weighted())
        self.labels = any(objective.labels for _, _, objective in self._weighted())
        self.views = max(objective.views for _, _, objective in self._weighted())

    def _weighted(self) -> Iterator[tuple[str, float, Objective]]:
        for term in self.config.terms:
            yield term.title, term.weight, cast(Objective, self.terms[term.title])

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; metrics `<term>/loss` and `<term>/<metric>`."""
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for title, weight, objective in self._weighted():
            loss, of_term = objective(*views[: objective.views])
            losses.append(weight * loss)
            metrics |= {f"{title}/{name}": value for name, value in {"loss": loss.detach(), **of_term}.items()}
        return sum(losses[1:], losses[0]), metrics

    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The columns of all terms, each after the term's name."""
        shown: dict[str, Tensor] = {}
        for title, _, objective in self._weighted():
            columns = objective.show(*views[: objective.views])
            shown |= {f"{title} {name}": picture for name, picture in columns.items()}
        return shown

    def check_shape(self, shape: Size3D) -> None:
        """Raise UserError where any term cannot be trained on crops of (D, H, W)."""
        for _, _, objective in self._weighted():
            objective.check_shape(shape)

    def trained_parts(self) -> dict[Part, str]:
        """The encoder, and the decoder and head of the first term that trains the backbone's own."""
        for title, _, objective in self._weighted():
            if objective.own_decoder:
                own = {part: f"terms.{title}.{name}" for part, name in objective.trained_parts().items()}
                return own | {"encoder": "encoder"}
        return super().trained_parts()

    def viewers(self, view: int) -> list[Objective]:
        """The objectives among the terms that see view number `view`."""
        return [each for _, _, objective in self._weighted() for each in objective.viewers(view)]

    def teachers(self) -> dict[str, Encoder]:
        """Those of all terms.

        Raises:
            UserError: two terms have the same teacher.
        """
        found: dict[str, Encoder] = {}
        for _, _, objective in self._weighted():
            theirs = objective.teachers()
            if both := found.keys() & theirs.keys():
                raise UserError(f"two terms of the objective have the teacher {min(both)}; merge them into one")
            found |= theirs
        return found

    def after_step(self, progress: float) -> None:
        """Call `after_step` of every term."""
        for _, _, objective in self._weighted():
            objective.after_step(progress)
