"""`scanfoundry launch --dry-run`: what a run would need of each GPU, before anything is submitted."""

from typing import TYPE_CHECKING

from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.memory.estimate import Calculator
from scanfoundry.pretrain.memory.states import Usage

if TYPE_CHECKING:
    from scanfoundry.launch.cluster.submit import ClusterConfig

GB = 1e9
Choice = tuple[int, bool]  # ZeRO stage, activation checkpointing


def describe(config: PretrainConfig, cluster: "ClusterConfig") -> list[str]:
    """Estimate the memory per process at each ZeRO stage, with and without activation checkpointing.

    Args:
        config: the run.
        cluster: nodes and processes. What fits follows from `gpu_memory_gb` or, on nodes without GPUs, from `memory_gb`
            shared by a node's processes.

    Returns:
        Lines of a table, and a line of advice.

    Raises:
        UserError: the batch does not divide among the processes.
    """
    world, on_gpu = cluster.nodes * cluster.tasks_per_node, cluster.gpus_per_node > 0
    calculator = Calculator(config, world, "cuda" if on_gpu else "cpu")
    choices = [(stage, on) for on in (False, True) for stage in range(4)]
    found = {(stage, on): calculator.usage(stage, on) for stage, on in choices}
    own: Choice = (config.engine.zero_stage, config.engine.activation_checkpointing)
    limit = _limit(cluster, on_gpu)
    head = (
        f"{calculator.model.trainable:,} trainable parameters, {world} processes, {config.engine.precision}; "
        f"GB per {'GPU' if on_gpu else 'process'}, estimated"
    )
    columns = f"  {'zero_stage':>10} {'checkpointing':>13} {'states':>8} {'activations':>11} {'peak':>8} {'host':>8}"
    return [head, columns, *(_row(each, found[each], each == own) for each in choices), _advice(found, own, limit)]


def _row(choice: Choice, usage: Usage, marked: bool) -> str:
    numbers = (sum(usage.held.values()), usage.activations, usage.peak, usage.host)
    states, activations, peak, host = (number / GB for number in numbers)
    mark = ">" if marked else " "
    return (
        f"{mark} {choice[0]:>10} {'on' if choice[1] else 'off':>13} {states:>8.2f} {activations:>11.2f} {peak:>8.2f} "
        f"{host:>8.2f}"
    ) + ("  <- configured" if marked else "")


def _limit(cluster: "ClusterConfig", on_gpu: bool) -> float | None:
    """GB that a process may use, where that is known."""
    if on_gpu:
        return cluster.gpu_memory_gb
    if cluster.memory_gb is None:
        return None
    return cluster.memory_gb / cluster.tasks_per_node


def _advice(found: dict[Choice, Usage], own: Choice, limit: float | None) -> str:
    """Which of the choices fit; the configured one first, then the one that costs the least time."""
    if limit is None:
        least = min(found, key=lambda choice: found[choice].peak)
        return f"the least memory: {_named(least)}; say --gpu-memory GB to learn which settings fit"
    fit = [
        choice for choice in found if found[choice].peak <= limit * GB
    ]  # without checkpointing first, low stages first
    if own in fit:
        return f"the configured {_named(own)} fits into {limit:g} GB"
    if fit:
        return f"the configured {_named(own)} does not fit into {limit:g} GB; {_named(fit[0])} does"
    return (
        f"nothing fits into {limit:g} GB: use more processes, engine.accumulation, a smaller batch or crop, "
        "or engine.precision=bf16"
    )


def _named(choice: Choice) -> str:
    return f"engine.zero_stage={choice[0]} engine.activation_checkpointing={str(choice[1]).lower()}"
