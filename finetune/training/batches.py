"""Step -> batch, a pure function of the seed and the step, drawn while the step before is computed."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from scanfoundry.finetune.config.study import AugmentationConfig
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.task import Adapter

LABELLED, PATCHES, MIX, OTHERS = 0, 1, 2, 3  # what a generator is for


class Batches:
    """Whole shuffled rounds over the samples, then patches. From `mix` on some places go to other samples."""

    def __init__(
        self,
        adapter: Adapter[Any, Any],
        samples: Sequence[Sample[Any]],
        seed: int,
        augmentation: AugmentationConfig,
        foreground: float,
    ) -> None:
        self._adapter, self._samples, self._seed = adapter, samples, seed
        self._augmentation, self._foreground = augmentation, foreground
        self.others: Sequence[Sample[Any]] = ()
        self._share = 0.0
        self._ahead = ThreadPoolExecutor(1)
        self._drawn: tuple[int, Future[tuple[Tensor, Any]]] | None = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ahead.shutdown(cancel_futures=True)

    def take(self, step: int) -> tuple[Tensor, Any]:
        """The batch of a step; that of the next step is begun."""
        images, targets = self._drawing(step).result()
        self._drawn = step + 1, self._ahead.submit(self._draw, step + 1)
        return images, targets

    def mix(self, others: Sequence[Sample[Any]], share: float) -> None:
        """From the next step on each place of a batch goes with chance `share` to one of `others`."""
        if self._drawn is not None:
            self._drawn[1].result()  # was begun with what was there before
            self._drawn = None
        self.others, self._share = others, share

    def _drawing(self, step: int) -> "Future[tuple[Tensor, Any]]":
        if self._drawn is not None and self._drawn[0] == step:
            return self._drawn[1]
        return self._ahead.submit(self._draw, step)

    def _draw(self, step: int) -> tuple[Tensor, Any]:
        size = self._adapter.spec.plan.batch
        mixed = np.random.default_rng([self._seed, MIX, step]).random(size) < self._share
        chosen = [
            self._one(self.others if other else self._samples, OTHERS if other else LABELLED, step * size + i)
            for i, other in enumerate(mixed)
        ]
        rng = np.random.default_rng([self._seed, PATCHES, step])
        return self._adapter.batch(chosen, rng, self._augmentation, self._foreground)

    def _one(self, samples: Sequence[Sample[Any]], purpose: int, position: int) -> Sample[Any]:
        turn, place = divmod(position, len(samples))
        return samples[np.random.default_rng([self._seed, purpose, turn]).permutation(len(samples))[place]]
