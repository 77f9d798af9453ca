"""What a step's objective sees of a crop: as many views as it takes, each a pure function of the crop's seed."""

from collections.abc import Iterable

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment.pipeline import INTENSITIES, Augment
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.projection import project
from scanfoundry.datasets.synthetic.source import MODALITY
from scanfoundry.pretrain.objectives import Objective


class Views:
    """From a batch of the loader to `count` views of it, row i of each of the same subject.

    positives 'views': augmentations 0 to count - 1 of one crop. 'crops' and 'study': the halves of a paired batch, one
    as view 0, the other as view 1. 'projection': the volume as view 0, its projection as view 1; a batch of images,
    which have none, gives two augmentations. No running generator is read or moved.
    """

    def __init__(self, config: DataConfig, count: int, clean: bool = False) -> None:
        """`clean`: the views hold their voxels before the intensities were changed, too."""
        self._augment, self._count = Augment(config.augment, clean), count
        self._project = config.positives == "projection"

    def __call__(self, batch: Batch) -> tuple[Batch, ...]:
        """The views, on the batch's device."""
        if self._count == 1:
            return (self._augment(batch),)
        if batch.paired:
            first, second = batch.halves()
            return self._augment(first, 0), self._augment(second, 1)
        if self._project and not batch.is_2d:
            return self._augment(batch, 0), self._augment(project(batch), 1)
        return tuple(self._augment.views(batch, self._count))


def check_views(config: DataConfig, objective: Objective, crops: Iterable[Size3D], modalities: Iterable[str]) -> None:
    """Raise UserError where the stream's crops (D, H, W) and their views cannot be trained on by the objective."""
    crops = list(crops)
    if objective.views == 1 and config.positives != "views":
        raise UserError(
            f"data.positives '{config.positives}' is for objectives that compare two views, this one looks at one; "
            "set data.positives to 'views', or add an objective that compares ('contrastive', 'barlow_twins')"
        )
    if config.positives == "projection" and all(crop[0] == 1 for crop in crops):
        raise UserError("data.positives 'projection' needs volumes and the sources have images alone; take 'views'")
    if objective.clean:
        _check_intensities(config, modalities)
    if objective.labels:
        _check_labels(config)
    for crop in crops:
        for view in range(objective.views):
            for shape in view_shapes(config, crop, view):
                for viewer in objective.viewers(view):
                    viewer.check_shape(shape)
        if objective.views > 1:
            _check_distinct(config, crop, modalities)


def check_depth(objective: Objective, volumes: int) -> None:
    """Raise UserError where the objective compares places along the depth of volumes and the stream has none."""
    if objective.needs_depth and not volumes:
        raise UserError(
            "objective.positions.axes ['d'] is the place along the depth of volumes, and the sources have images "
            "alone; add a source of volumes, name other axes where they mean the same in all images, or remove it"
        )


def _check_intensities(config: DataConfig, modalities: Iterable[str]) -> None:
    """UserError where the clean crop would be the augmented one."""
    for modality in modalities:
        transforms = config.augment.of(modality)
        switches = (getattr(transforms, name) for name in INTENSITIES)
        if any(each is not None and each.probability > 0 for each in switches):
            return
    raise UserError(
        "objective.reconstruct 'clean' is the crop itself: no augmentation of intensities is switched on; set "
        "data.augment.preset to 'strong', switch transforms on, or remove it"
    )


def _check_labels(config: DataConfig) -> None:
    """UserError where the views would come without label maps, or not be two appearances of one."""
    read = [source.name for source in config.sources if source.synthetic is None]
    if read:
        raise UserError(
            f"the objective compares voxels by their labels, and source '{read[0]}' has no label maps: give "
            "'dense_contrast' sources that are `synthetic` alone"
        )
    if config.positives not in ("crops", "study"):
        raise UserError(
            f"the objective compares two appearances of a synthetic scan, and data.positives '{config.positives}' "
            "gives one; set data.positives to 'study'"
        )
    augment, transforms = config.augment, dict(config.augment.of(MODALITY))
    moving = [name for name, each in transforms.items() if name not in INTENSITIES and each and each.probability > 0]
    moving += [name for name in ("size_2d", "size_3d") if getattr(augment, name) is not None]
    if moving:
        raise UserError(
            f"data.augment moves the voxels of one appearance away from those of the other ({', '.join(moving)}): the "
            "drawing bends its shapes already; set data.augment.preset to 'none', or switch on intensities alone"
        )


def view_shapes(config: DataConfig, crop: Size3D, view: int) -> list[Size3D]:
    """The shapes (D, H, W) that a view of crops may have: one, or for a projection one for each axis."""
    depth, height, width = crop
    if view == 0 or depth == 1 or config.positives != "projection":
        return [_augmented(config, crop)]
    planes: list[Size3D] = [(1, height, width), (1, depth, width), (1, depth, height)]
    return list(dict.fromkeys(_augmented(config, plane) for plane in planes))


def _augmented(config: DataConfig, shape: Size3D) -> Size3D:
    """The size of an augmented view of a scan of (D, H, W)."""
    size_2d, size_3d = config.augment.size_2d, config.augment.size_3d
    if shape[0] == 1:
        return (1, *size_2d) if size_2d else shape
    return size_3d or shape


def _check_distinct(config: DataConfig, crop: Size3D, modalities: Iterable[str]) -> None:
    """UserError where two views of a crop would be the same: nothing to learn, and the loss would not tell."""
    apart = config.positives in ("crops", "study") and config.min_overlap < 1
    if apart or (config.positives == "projection" and crop[0] > 1):
        return
    if any(small < size for small, size in zip(_augmented(config, crop), crop, strict=True)):
        return  # each view is cut out at a place of its own
    appearances = config.positives in ("crops", "study")
    for modality in modalities:
        if appearances and modality == MODALITY:
            continue
        transforms = config.augment.of(modality)
        if all(each is None or each.probability == 0 for _, each in transforms):
            raise UserError(
                f"the two views of a crop of modality '{modality}' would be identical: no augmentation is switched on "
                "for it; set data.augment.preset to 'strong', switch transforms on, or take other data.positives"
            )
