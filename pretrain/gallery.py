"""Reconstruction pictures of the same few crops over the whole run."""

from pathlib import Path

import torch

from scanforge.datasets.batch import Batch
from scanforge.datasets.loader import CropLoader
from scanforge.pretrain.config import PretrainConfig
from scanforge.pretrain.distributed import World
from scanforge.pretrain.engine import Engine
from scanforge.pretrain.pictures import draw

LOOK_AHEAD = 50  # steps of the stream searched for the first 2D and the first 3D batch


class Gallery:
    """Holds the first 2D and the first 3D batch of the stream, whose masks are fixed by their seeds."""

    def __init__(self, config: PretrainConfig, world: World) -> None:
        self._folder = config.run_dir / "pictures"
        self._config, self._world = config, world
        self._batches: list[Batch] | None = None

    def hang(self, engine: Engine, step: int) -> Path | None:
        """Draw the reconstructions at `step`; every rank computes (ZeRO 3 needs all), the first one draws."""
        if self._batches is None:
            self._batches = self._first_batches()
        engine.evaluate()
        with torch.no_grad():
            shown = [engine.objective.reconstruct(batch.to(self._world.device)) for batch in self._batches]
        engine.train()
        if not self._world.is_main:
            return None
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step-{step:08d}.png"
        draw(shown, path)
        return path

    def _first_batches(self) -> list[Batch]:
        config = self._config
        data = config.data.model_copy(update={"workers": 0})
        found: dict[bool, Batch] = {}
        with CropLoader(data, config.seed, self._world.rank, self._world.size, config.engine.accumulation) as loader:
            kinds = 2 if data.crop_2d and data.crop_3d else 1
            for batch, _ in zip(loader, range(LOOK_AHEAD), strict=False):
                found.setdefault(batch.is_2d, batch)
                if len(found) == kinds:
                    break
        return [found[kind] for kind in sorted(found, reverse=True)]
