"""The sampling plan of a run that begins or goes on, on the sources as they are now."""

from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.growth import growth_of
from scanfoundry.datasets.plan import SamplingPlan, open_sources
from scanfoundry.datasets.sampling.segments import Segment, continued
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.synthetic.source import SyntheticSource
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World, gather_objects


def planned(config: PretrainConfig, world: World, found: Path | None, step: int) -> SamplingPlan:
    """The plan of a run, the same on every rank; every rank calls it.

    Args:
        config: of the run.
        world: the ranks.
        found: the checkpoint that it goes on from, if there is one.
        step: optimiser steps taken.

    Raises:
        UserError: the sources are not those that the run knows, nor grown ones that it may take.
    """
    data = open_sources(config.data)
    mine = [each.manifest_hash for each in data]
    if any(others != mine for others in gather_objects(mine, world)):
        raise UserError("scans were appended to a source while the run was starting; give the same command again")
    segments = [] if found is None else segments_now(config, data, found, step)
    plan = SamplingPlan(config.data, config.seed, segments, data)
    plan.messages += growth_of(plan)
    return plan


def segments_now(
    config: PretrainConfig, data: Sequence[DataSet | SyntheticSource], found: Path, step: int
) -> list[Segment]:
    """The segments of a run that goes on from a checkpoint.

    Args:
        config: of the run.
        data: its sources.
        found: the checkpoint.
        step: optimiser steps taken.

    Raises:
        UserError: the sources are not those that the run knows, nor grown ones that it may take.
    """
    named = {source.name: each for source, each in zip(config.data.sources, data, strict=True)}
    manifests = {name: each.manifest_hash for name, each in named.items()}
    earlier = {name: each.earlier_manifests() for name, each in named.items() if isinstance(each, DataSet)}
    return continued(checkpoint.segments(found), step, manifests, earlier, config.data.allow_grown)
