"""Dense contrast of two appearances of one label map, through a U-Net: encoder and decoder are trained.

After anatomix (Dey et al. 2025, arXiv 2411.02372), which trains a U-Net on synthetic volumes alone. What an appearance
changes, the features should not tell; what is another structure, they should.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from scanfoundry.backbones.layers.segmentation import Part, UNet
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.losses.dense_contrast import label_contrast, voxel_cosines
from scanfoundry.pretrain.objectives.points import at_grid, draw_points
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions

Positive = Annotated[int, Field(gt=0)]
Level = Annotated[int, Field(ge=0)]
# Of a U-Net's levels those that it has: what a segmentation reads, and what is coarse enough to be cheap.
ENCODER_LEVELS, DECODER_LEVELS = (2, 3), (0, 1, 2)


class DenseContrastConfig(ObjectiveOptions):
    """Which maps are compared, at how many voxels, and the projectors. Levels are counted from the finest, 0."""

    name: Literal["dense_contrast"] = "dense_contrast"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    voxels: Annotated[int, Field(ge=2)] = 256  # of a map, in each appearance
    encoder_levels: tuple[Level, ...] | None = None  # None: those of `ENCODER_LEVELS` that the backbone has
    decoder_levels: tuple[Level, ...] | None = None
    projector_hidden: Positive = 256
    projector_dim: Positive = 128

    @model_validator(mode="after")
    def _whole_decoder(self) -> "DenseContrastConfig":
        if self.decoder_levels is not None and 0 not in self.decoder_levels:
            raise ValueError("decoder_levels must hold 0, the finest: the decoder above the others would stay random")
        return self

    def build(self, encoder: Encoder) -> "DenseContrast":
        """The objective on an encoder.

        Raises:
            UserError: it has no decoder, or not these levels.
        """
        decoder = encoder.feature_decoder()
        if decoder is None:
            raise UserError(
                f"objective 'dense_contrast' needs a U-Net ('stunet', 'mednext', 'resenc'), and backbone "
                f"'{encoder.config.name}' has no decoder; take 'contrastive' or 'barlow_twins'"
            )
        return DenseContrast(self, encoder, decoder)

    def maps(self, levels: int) -> list[tuple[Literal["encoder", "decoder"], int]]:
        """The maps that are compared, of an encoder with so many levels.

        Raises:
            UserError: it lacks one of them.
        """
        found: list[tuple[Literal["encoder", "decoder"], int]] = []
        part: Literal["encoder", "decoder"]
        for part, count, given, usual in (
            ("encoder", levels, self.encoder_levels, ENCODER_LEVELS),
            ("decoder", levels - 1, self.decoder_levels, DECODER_LEVELS),
        ):
            chosen = given if given is not None else [level for level in usual if level < count]
            if any(level >= count for level in chosen):
                raise UserError(f"objective.{part}_levels {list(chosen)}: the backbone's are 0 to {count - 1}")
            found += [(part, level) for level in sorted(set(chosen))]
        return found


class DenseContrast(Objective):
    """Both appearances through encoder and decoder; at each of some maps a projector, and the contrast of voxels."""

    views = 2
    own_decoder = True
    labels = True

    def __init__(self, config: DenseContrastConfig, encoder: Encoder, decoder: UNet) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.decoder = decoder
        self.maps = config.maps(len(encoder.feature_channels))
        self.projectors = nn.ModuleDict()
        for part, level in self.maps:
            self.projectors[f"{part}_{level}"] = nn.Sequential(
                nn.Linear(encoder.feature_channels[level], config.projector_hidden),
                nn.ReLU(),
                nn.Linear(config.projector_hidden, config.projector_dim),
            )

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, mean over maps and pairs; metrics for each pair.

        `contrast` is its loss. `same_voxel` is the cosine of a voxel in both appearances and `other_label` that of
        voxels of different labels, mean over maps.
        """
        first, second = views
        if first.labels is None:
            raise UserError(
                "objective 'dense_contrast' compares voxels by their labels, and the crops have none: every one of "
                "data.sources must be `synthetic`"
            )
        features = self._features(first, second)
        losses: list[Tensor] = []
        cosines: list[tuple[Tensor, Tensor]] = []
        for (part, level), projector in zip(self.maps, self.projectors.values(), strict=True):
            volume = features[part][level]
            grid = (volume.shape[2], volume.shape[3], volume.shape[4])
            points = draw_points(at_grid(first.labels, grid), first.seeds, self.config.voxels).on(volume.device)
            known = at_grid(first.valid & second.valid, grid)
            counted = points.counted & points.of(known).squeeze(2)
            one, other = (projector(points.of(half)) for half in volume.chunk(2))
            losses.append(label_contrast(one, other, points.labels, counted, self.config.temperature))
            cosines.append(voxel_cosines(one, other, points.labels, counted))
        loss = torch.stack(losses).mean(dim=0)
        same, others = (torch.stack(each).nanmean(dim=0) for each in zip(*cosines, strict=True))
        return loss.mean(), {"contrast": loss.detach(), "same_voxel": same, "other_label": others}

    def _features(self, first: Batch, second: Batch) -> dict[str, list[Tensor]]:
        """The maps of both appearances, one after the other: no network's output depends on what is beside a scan."""
        dtype = next(self.projectors.parameters()).dtype
        encoded = self.encoder(torch.cat((first.voxels, second.voxels)).to(dtype))
        return {"encoder": encoded, "decoder": self.decoder.decode(encoded)}

    def trained_parts(self) -> dict[Part, str]:
        """Encoder and decoder: nothing gives voxels."""
        return {"encoder": "encoder", "decoder": "decoder"}

    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The two appearances and their label map."""
        first, second = views
        columns = {"first appearance": first.voxels, "second appearance": second.voxels}
        if first.labels is not None:
            columns["labels"] = first.labels.to(first.voxels).expand_as(first.voxels)
        return columns

    def check_shape(self, shape: Size3D) -> None:
        """What the encoder can encode."""
        self.encoder.check_input(shape)
