"""Which part of which parameter this rank's optimiser holds, at every ZeRO stage.

ZeRO cuts parameters up: at stages 1 and 2 the weights are whole on every rank and a flat partition of each parameter
group is stepped; at stage 3 each parameter is itself partitioned. Here what a rank holds is expressed in one way, as
elements [start, start + numel) of the flattened parameter of a name. Checkpoints that know no world size, LAMB's
norms and the release of partitioned weights are written in these terms, and know nothing of stages.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scanfoundry.pretrain.distributed.world import World


@dataclass(frozen=True)
class ParameterShard:
    """Elements [start, start + numel) of a flattened parameter, and where this rank holds them.

    flat: the tensor that holds them in its elements [offset, offset + numel). Of trainable parameters it is what the
    optimiser steps, and its state has tensors of the same length.
    """

    name: str
    parameter: nn.Parameter
    start: int
    numel: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """The shard (numel,) as a view of `flat`, or of a tensor as long, such as its momentum."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)


def parameter_shards(model: nn.Module, optimiser: Any, stage: int, world: World) -> list[ParameterShard]:
    """The shards of a model that this rank holds.

    Those of all ranks together cover each parameter, at stage 3 once and below it at least once.

    Args:
        model: the objective, as DeepSpeed has partitioned it.
        optimiser: DeepSpeed's, around ours.
        stage: of ZeRO, 0 to 3.
        world: the ranks.
    """
    cut: dict[int, Callable[[str, nn.Parameter, Any, World], Iterator[ParameterShard]]]
    cut = {0: _whole, 1: _of_partition, 2: _of_partition, 3: _of_shard}
    found: list[ParameterShard] = []
    for name, parameter in model.named_parameters():
        frozen = stage < 3 and not parameter.requires_grad
        found += (_whole if frozen else cut[stage])(name, parameter, optimiser, world)
    return found


def shared_out(held: list[ParameterShard], world: World) -> list[ParameterShard]:
    """The shards that this rank writes.

    Of parameters that every rank holds whole, each rank takes one after the other; shards that are its own stay.
    """
    whole = [shard for shard in held if shard.flat is shard.parameter]
    mine = {id(shard) for shard in whole[world.rank :: world.size]}
    return [shard for shard in held if shard.flat is not shard.parameter or id(shard) in mine]


def _whole(name: str, parameter: nn.Parameter, optimiser: Any, world: World) -> Iterator[ParameterShard]:
    yield ParameterShard(name, parameter, 0, parameter.numel(), parameter, 0)


def _of_partition(name: str, parameter: nn.Parameter, optimiser: Any, world: World) -> Iterator[ParameterShard]:
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is not None:
        inside, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = optimiser.single_partition_of_fp32_groups[mapping.param_group_index]
        yield ParameterShard(name, parameter, inside.start, here.numel, flat, here.start)


def _of_shard(name: str, parameter: nn.Parameter, optimiser: Any, world: World) -> Iterator[ParameterShard]:
    """The last ranks' shards are padded, or all padding where a parameter has fewer elements than there are ranks."""
    held: Any = parameter
    start = held.ds_tensor.ds_numel * world.rank
    numel = min(held.ds_tensor.ds_numel, max(0, held.ds_numel - start))
    if numel == 0:
        return
    if not parameter.requires_grad:
        yield ParameterShard(name, parameter, start, numel, held.ds_tensor, 0)
        return
    group, offset, _ = optimiser.grad_position[optimiser.get_param_id(parameter)]
    yield ParameterShard(name, parameter, start, numel, optimiser.fp32_partitioned_groups_flat[group], offset)
