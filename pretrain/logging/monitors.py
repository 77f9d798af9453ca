"""Whether an encoder's features collapse: their effective rank and their spread on fixed crops of the stream."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.collectives import gathered
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.logging.first_batches import first_batches

LOWEST = 1.5  # effective rank below which features have collapsed whatever they began with: 1 is one direction,
# and features of health that share a large mean, as a young MAE has them, have between 2 and 4
SHARE = 0.05  # of the rank first seen, the same


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features (N, F), in [1, min(N, F)] up to eps: RankMe (Garrido et al. 2023, arXiv 2210.02885).

    exp of the entropy of the singular values divided by their sum, plus eps (equations 1 and 2); nothing is centred.
    All zeros have rank 1.
    """
    values = torch.linalg.svdvals(features.double().cpu())
    shares = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny) + eps
    return float(torch.exp(-(shares * shares.log()).sum()))


def spread(features: Tensor) -> tuple[float, float]:
    """Standard deviation over the samples of features (N, F), averaged over F: of unit vectors, and as they are.

    The first is 1 / sqrt(F) where directions are spread evenly and 0 where all are the same (Chen and He 2021,
    SimSiam, arXiv 2011.10566, section 4.1).
    """
    features = features.double()
    return float(F.normalize(features, dim=1).std(0).mean()), float(features.std(0).mean())


class Monitors:
    """Measures the encoder's pooled features on the stream's first crops of each kind, not augmented.

    first: the effective ranks that the run began with, by key; the loop keeps them in its checkpoints.
    """

    def __init__(self, config: PretrainConfig, world: World, plan: SamplingPlan) -> None:
        self._config, self._world, self._plan = config, world, plan
        self._batches: list[list[Batch]] | None = None
        self._collapsed: set[str] = set()
        self.first: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether `step` is measured: every `monitor_every` steps, or at checkpoints; and the last."""
        every = self._config.monitor_every or self._config.checkpoint_every
        return self._config.monitor_crops > 0 and (step % every == 0 or step == self._config.steps)

    def measure(self, engine: Engine) -> dict[str, float]:
        """`rankme_<kind>`, `feature_std_<kind>` (unit vectors), `feature_std_plain_<kind>`; kinds are 2d and 3d.

        Every rank calls it and gets the same numbers, of the crops of all ranks. Weights, buffers and random states
        stay as they are.
        """
        if self._batches is None:
            self._batches = first_batches(self._config, self._world, self._plan, self._config.monitor_crops)
        engine.evaluate()
        found: dict[str, float] = {}
        for batches in self._batches:
            kind = "2d" if batches[0].is_2d else "3d"
            features = _features(engine, batches, self._world)
            if len(features) < 2:
                continue
            unit, plain = spread(features)
            found |= {f"rankme_{kind}": rankme(features), f"feature_std_{kind}": unit}
            found[f"feature_std_plain_{kind}"] = plain
        engine.train()
        return found

    def warnings(self, measured: dict[str, float]) -> list[str]:
        """A line for each kind whose effective rank has newly fallen below what features in use have."""
        found = []
        for key, rank in measured.items():
            if not key.startswith("rankme"):
                continue
            limit = max(LOWEST, SHARE * self.first.setdefault(key, rank))
            if rank >= limit:
                self._collapsed.discard(key)
            elif key not in self._collapsed:
                self._collapsed.add(key)
                found.append(f"{key} is {rank:.1f}, below {limit:.1f}: the encoder's features have collapsed")
        return found


def _features(engine: Engine, batches: list[Batch], world: World) -> Tensor:
    """Pooled features (N, F) of the batches of all ranks."""
    found = []
    for batch in batches:
        batch = (batch.halves()[0] if batch.paired else batch).to(world.device)
        with torch.no_grad():
            found.append(engine.objective.encoder.pooled(batch.voxels, batch.valid).float())
    return gathered(torch.cat(found))
