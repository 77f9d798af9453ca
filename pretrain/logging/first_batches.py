"""The first crops of a run's stream: the fixed ones that pictures and monitors look at over the whole run."""

from itertools import islice

from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World

LOOK_AHEAD = 100  # steps of the stream that are read at most


def first_batches(config: PretrainConfig, world: World, plan: SamplingPlan, crops: int) -> list[list[Batch]]:
    """For each kind of batch in the stream, images first: this rank's micro-batches of the kind's first steps.

    As many whole steps as hold `crops` crops on all ranks together (a pair is one), or as there are among the first
    `LOOK_AHEAD`. So all ranks have as many batches, and together they have the same crops at any world size. Reads in
    this process, by the plan of the run, and leaves its loader alone. What was appended to the sources since the run
    began changes nothing: the crops stay comparable.
    """
    data = config.data.model_copy(update={"workers": 0})
    accumulation = config.engine.accumulation
    found: dict[bool, list[Batch]] = {}
    with CropLoader(data, config.seed, world.rank, world.size, accumulation, plan=plan.first) as loader:
        kinds = len(loader.plan.kinds)
        for _ in range(LOOK_AHEAD):
            step = list(islice(loader, accumulation))
            held = found.setdefault(step[0].is_2d, [])
            if _crops(held) * world.size < crops:
                held += step
            if len(found) == kinds and all(_crops(each) * world.size >= crops for each in found.values()):
                break
    return [found[kind] for kind in sorted(found, reverse=True)]


def _crops(batches: list[Batch]) -> int:
    return sum(len(batch) // 2 if batch.paired else len(batch) for batch in batches)
