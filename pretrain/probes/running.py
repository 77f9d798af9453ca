"""The probes of a run: set up and checked at its start, measured when they are due."""

import time
from collections.abc import Callable
from functools import cached_property

import numpy as np

from scanfoundry.backbones.probes.classification import logistic, nearest, scores
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.config.probes import KnnConfig, ProbeConfig, ProbeDataConfig, SegmentationConfig, title
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.probes.features import pooled_features
from scanfoundry.pretrain.probes.images import Images
from scanfoundry.pretrain.probes.labelled import Chosen
from scanfoundry.pretrain.probes.probe_setup import ProbeSetup, Site
from scanfoundry.pretrain.probes.segmentation import SegmentationProbe

Measure = Callable[[Engine], dict[str, float]]


class Probes:
    """All probes of a run. `messages`: lines to be shown once, at the start.

    UserError, with the probe's name, on every rank, where one cannot be run at all.
    """

    def __init__(self, config: PretrainConfig, encoder: Encoder, world: World, site: Site) -> None:
        self._config, self._world = config, world
        self.messages: list[str] = []
        self._images: dict[tuple[ProbeDataConfig, str | None], _Classified] = {}
        self._measures: list[tuple[ProbeConfig, Measure]] = []
        for probe in config.probes:
            try:
                setup = ProbeSetup(config, probe, encoder, world, site)
                self._measures.append((probe, self._segmentation(setup) if setup.masks else self._classes(setup)))
            except UserError as error:
                raise UserError(f"probe '{title(probe)}': {error}") from error
            self.messages += setup.messages

    def _segmentation(self, setup: "ProbeSetup") -> Measure:
        parts, counts, classes = setup.parts()
        assert isinstance(setup.probe, SegmentationConfig)
        return SegmentationProbe(parts, counts, classes, setup.probe.points, setup.rows, self._world).measure

    def _classes(self, setup: "ProbeSetup") -> Measure:
        """Probes of the same scans share their crops and features."""
        assert not isinstance(setup.probe, SegmentationConfig)
        key = (setup.probe.data, setup.probe.target)
        if key not in self._images:
            self._images[key] = _Classified(setup.chosen, setup.read(setup.chosen.scans), setup.rows, self._world)
        scans, probe = self._images[key], setup.probe
        return lambda engine: scans.scores(engine, probe)

    def due(self, step: int) -> bool:
        """Whether it is the turn of any probe."""
        return any(self._is_due(probe, step) for probe, _ in self._measures)

    def _is_due(self, probe: ProbeConfig, step: int) -> bool:
        return step % (probe.every or self._config.checkpoint_every) == 0 or step == self._config.steps

    def measure(self, engine: Engine, step: int) -> dict[str, float]:
        """`probe/<name>/<metric>` of the probes that `step` is the turn of, and the seconds that each took.

        Every rank calls it; the first one's numbers count. Weights, gradients, buffers, random states and the
        position of the stream stay as they are.
        """
        found: dict[str, float] = {}
        for probe, measure in self._measures:
            if self._is_due(probe, step):
                started = time.perf_counter()
                values = {**measure(engine), "seconds": 0.0}
                values["seconds"] = round(time.perf_counter() - started, 3)
                found |= {f"probe/{title(probe)}/{name}": value for name, value in values.items()}
        for each in self._images.values():
            each.forget()
        return found


class _Classified:
    """Scans with classes, and their features of this step."""

    def __init__(self, chosen: Chosen, images: Images, rows: int, world: World) -> None:
        self._chosen, self._images, self._rows, self._world = chosen, images, rows, world
        self._features: np.ndarray | None = None

    def scores(self, engine: Engine, probe: ProbeConfig) -> dict[str, float]:
        """Metrics on the test scans, on the first rank; others help with the features."""
        if self._features is None:
            count = len(self._chosen.scans)
            self._features = pooled_features(engine, self._images, count, self._rows, self._world).numpy()
        if not self._world.is_main:
            return {}
        if not np.isfinite(self._features).all():  # of a run that diverges, which says so itself
            return {"balanced_accuracy": float("nan"), "auroc": float("nan")}
        labels, test, patients = self._columns
        train, rows = self._features[~test], self._features[test]
        if isinstance(probe, KnnConfig):
            near = (len(self._chosen.classes), probe.neighbours, probe.temperature)
            return scores(labels[test], nearest(train, labels[~test], rows, *near))
        return scores(labels[test], logistic(train, labels[~test], patients[~test], rows))

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Class, whether it is tested on, and patient, of each scan."""
        scans = self._chosen.scans
        labels, test = np.array([scan.label for scan in scans]), np.array([scan.test for scan in scans])
        return labels, test, np.array([scan.entry.patient for scan in scans])

    def forget(self) -> None:
        """Drop the features, which are other ones at the next step."""
        self._features = None
