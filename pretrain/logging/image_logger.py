"""Pictures of the same few crops over the whole run, as the objective sees them and what it makes of them."""

from pathlib import Path

import torch
from torch import Tensor

from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.logging.first_batches import first_batches
from scanfoundry.pretrain.logging.pictures import draw
from scanfoundry.pretrain.objectives import Objective
from scanfoundry.pretrain.views import Views


class ImageLogger:
    """Draws the first batch of each kind in the stream, whose views and masks are fixed by their seeds."""

    def __init__(self, config: PretrainConfig, world: World, plan: SamplingPlan, views: Views) -> None:
        self._folder = config.run_dir / "pictures"
        self._config, self._world, self._plan, self._views = config, world, plan, views
        self._batches: list[Batch] | None = None

    def write(self, engine: Engine, step: int) -> Path | None:
        """Draw the pictures of `step`; every rank calls it, since ZeRO 3 needs all of them to compute.

        Returns:
            The file, on the first rank; None on the others.
        """
        if self._batches is None:
            self._batches = [first for first, *_ in first_batches(self._config, self._world, self._plan, crops=1)]
        engine.evaluate()
        with torch.no_grad():
            shown = [_show(engine.objective, self._views(batch.to(self._world.device))) for batch in self._batches]
        engine.train()
        if not self._world.is_main:
            return None
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step-{step:08d}.png"
        draw(shown, path)
        return path


def _show(objective: Objective, views: tuple[Batch, ...]) -> dict[str, Tensor]:
    """`objective.show(*views)`, called as its forward: only in there does ZeRO 3 gather a weight that is read.

    Modules that are called gather their own, but class tokens, mask tokens and the weights of packed convolutions are
    read without a call.
    """
    vars(objective)["forward"] = objective.show  # an attribute of the object goes before the method of its class
    try:
        columns: dict[str, Tensor] = objective(*views)
    finally:
        del vars(objective)["forward"]
    return columns
