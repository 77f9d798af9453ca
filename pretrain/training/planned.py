"""The sampling plan of a run that begins or goes on, on the sources as they are now."""

from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.growth import growth_of
from scanfoundry.datasets.plan import SamplingPlan, open_sources
from scanfoundry.datasets.sampling.segments import continued
from scanfoundry.datasets.shards.reader import DataSet
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
    named = {source.name: each for source, each in zip(config.data.sources, data, strict=True)}
    manifests = {name: each.manifest_hash for name, each in named.items()}
    if any(others != manifests for others in gather_objects(manifests, world)):
        raise UserError("scans were appended to a source while the run was starting; give the same command again")
    segments = []
    if found is not None:
        earlier = {name: each.earlier_manifests() for name, each in named.items() if isinstance(each, DataSet)}
        segments = continued(checkpoint.segments(found), step, manifests, earlier, config.data.allow_grown)
    plan = SamplingPlan(config.data, config.seed, segments, data)
    plan.messages += growth_of(plan)
    return plan
