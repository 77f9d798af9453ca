"""Four steps of an engine, and that it is the same after it was saved and loaded: for code that ranks run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.world import World, barrier
from scanfoundry.pretrain.engine.engine import Engine


def losses_when_resumed(
    engine: Callable[[], Engine], step: Callable[[Engine, int], float], world: World, folder: Path
) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of steps 0 to 3, and the weights after them.

    After step 1 the engine is saved. Another one that loads it has the same losses and, at the end, the same bits.
    """
    straight = engine()
    losses = [step(straight, number) for number in range(2)]
    straight.save(folder, {})
    barrier(world)
    losses += [step(straight, number) for number in range(2, 4)]
    weights = _weights(straight, world, folder.with_name(f"{folder.name}-straight"))
    resumed = engine()
    resumed.load(folder)
    assert [step(resumed, number) for number in range(2, 4)] == losses[2:], folder.name
    again = _weights(resumed, world, folder.with_name(f"{folder.name}-resumed"))
    assert weights.keys() == again.keys()
    different = [name for name in weights if not torch.equal(weights[name], again[name])]
    assert not different, (folder.name, different)
    return losses, weights


def _weights(engine: Engine, world: World, folder: Path) -> dict[str, Tensor]:
    engine.save(folder, {})
    barrier(world)
    return {name: value.clone() for name, value in engine.weights(folder).items()}
