"""The one place that knows DeepSpeed: from an objective to optimiser steps, saved and loaded at any ZeRO stage.

Facts behind the oddities, measured with deepspeed 0.19: the CPU communication extension compiles for most of a
minute at the first start and changes no loss, so it is switched off; the optimiser is passed as an object because
naming it in the configuration compiles a fused one. bf16 is autocast over fp32 weights rather than DeepSpeed's bf16
weights: losses and norms stay in fp32, every stage can be released and resumed, and the memory is the same 16 bytes
per parameter that bf16 weights with fp32 master copies take.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.configs.base import Config
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.checkpoint import model_state
from scanfoundry.pretrain.checkpoint.host_memory import HostMemory
from scanfoundry.pretrain.checkpoint.model_state import Snapshot
from scanfoundry.pretrain.checkpoint.parameter_shards import ParameterShard, parameter_shards
from scanfoundry.pretrain.checkpoint.state_files import StateFiles
from scanfoundry.pretrain.distributed.world import World, sum_over_ranks
from scanfoundry.pretrain.ema import unless
from scanfoundry.pretrain.engine import acceleration, activation_checkpointing
from scanfoundry.pretrain.engine.averages import Averages, Reduced
from scanfoundry.pretrain.engine.lamb import Lamb
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser, set_schedule, weight_decay
from scanfoundry.pretrain.objectives import Objective

BUCKET = 50_000_000  # elements that are reduced or gathered at once; DeepSpeed's own 500 million take 2 GB each


class EngineConfig(Config):
    """How a step is computed: ZeRO stage, precision, gradient accumulation, clipping by the global norm.

    Stage and offload change where numbers lie, not which: a run may continue with others.
    """

    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False  # the optimiser's states and its copy of the weights in host memory; from stage 1
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = Field(default=1, ge=1)
    clip: float = Field(default=1.0, ge=0)  # 0: no clipping
    activation_checkpointing: bool = False  # blocks keep their input alone: less memory, their forward pass twice
    reduce: Literal["fp32", "bf16"] = "fp32"  # what gradients are sent in; bf16 halves what the network carries
    compile: bool = False  # blocks by torch.compile; not for 'spark'
    tf32: bool = True  # float32 products of a GPU by tensor cores, with 10 bits of mantissa
    autotune: bool = True  # a GPU's convolutions try all kernels once; false: the same kernels at every start

    @model_validator(mode="after")
    def _something_to_offload(self) -> "EngineConfig":
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload needs zero_stage 1, 2 or 3: at stage 0 every rank would hold and step all states")
        return self

    def stage_of(self, processes: int) -> int:
        """The ZeRO stage that a run of so many processes takes: alone there is nobody to share with, and stage 0 comes
        to the same numbers without ZeRO's copies of weights and gradients (an eighth of a step's time on a CPU)."""
        return self.zero_stage if processes > 1 or self.offload else 0


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step reports, averaged over micro-batches, ranks and, where a metric has one, samples.

    metrics: by name; those with a number for each sample also as `<name>/<modality>` for modalities in the step.
    """

    loss: float
    metrics: dict[str, float]
    applied: bool  # False: the loss was not finite somewhere, weights and optimiser were left as they were
    asked: tuple[float, ...] = ()  # what was given to `Engine.launch`, summed over the ranks


class PendingStep:
    """A step that was launched, and may not be done; on a GPU the host goes on to the next one meanwhile."""

    def __init__(self, reduced: Reduced) -> None:
        self._reduced = reduced

    def if_applied(self, follow: Callable[[], None]) -> None:
        """Call what moves along with the weights, unless the step was skipped.

        On a GPU it is called in any case, since the host does not know: there `ema_update` leaves things as they are.
        """
        skip = self._reduced.skip
        if skip.device.type != "cpu":
            with unless(skip):
                follow()
        elif not skip:
            follow()

    def read(self) -> StepRecord:
        """What the step reports; waits until its forward passes are done."""
        applied, asked, means = self._reduced.read()
        loss = means.pop("loss")
        return StepRecord(loss if applied else float("nan"), means, applied, tuple(asked))


class Engine:
    """DeepSpeed around an objective (`loss, metrics = objective(*views)`).

    Args:
        modalities: by which the metrics of samples are also averaged; the same on all ranks.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: OptimiserConfig,
        config: EngineConfig,
        world: World,
        modalities: Sequence[str] = (),
    ) -> None:
        self.config, self.world, self.modalities = config, world, tuple(modalities)
        self._stage, self._memory = config.stage_of(world.size), HostMemory(world.device)
        fused = world.device.type != "cpu" and not config.offload
        self._optimiser_config, self._optimiser = optimiser, build_optimiser(objective, optimiser, fused)
        deepspeed = _import_deepspeed(world)
        objective.to(world.device)
        acceleration.set_kernels(world.device, config.tf32, config.autotune)
        if config.activation_checkpointing:
            activation_checkpointing.apply(objective)
        if config.compile:
            acceleration.compile_blocks(objective)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # takes over the group of `join`
        self._engine, _, _, _ = deepspeed.initialize(
            model=objective,
            optimizer=self._optimiser,
            config=deepspeed_config(config, world),
        )
        # Alone, a reduction only copies all gradients into a bucket and back.
        self._engine.enable_backward_allreduce = world.size > 1 or self._stage > 0
        if isinstance(self._optimiser, Lamb) and self._stage > 0:
            numbers = {name: row for row, (name, _) in enumerate(objective.named_parameters())}
            self._optimiser.lay_out(self._shards(), numbers, self._summed)

    @property
    def objective(self) -> Objective:
        """The objective inside; under ZeRO 3 its parameters are whole only during a forward pass of all ranks."""
        module: Objective = self._engine.module
        return module

    def step(self, batches: Iterable[tuple[Batch, ...]], lr: float, progress: float = 0.0) -> StepRecord:
        """`launch`, and wait for what it reports."""
        return self.launch(batches, lr, progress).read()

    def launch(
        self, batches: Iterable[tuple[Batch, ...]], lr: float, progress: float = 0.0, asked: Sequence[float] = ()
    ) -> PendingStep:
        """One optimiser step over `accumulation` micro-batches, each as its views, at the learning rate `lr`.

        If a loss is not finite on any rank, no rank changes its weights, or what its optimiser has noted: the one
        reduction of the metrics, before the last backward pass, tells all optimisers. Nothing here waits for a GPU,
        but for what DeepSpeed itself reads of the norm of the gradients from stage 1 on.

        Args:
            batches: as many as `accumulation`.
            lr: the learning rate.
            progress: share of the run that is done with this step, for `Objective.after_step`.
            asked: small numbers that are summed over all ranks along with the metrics.
        """
        averages, pending = Averages(self.modalities, self.world), None
        self._forget_gradients()
        set_schedule(self._optimiser, lr, weight_decay(progress, self._optimiser_config))
        for views in batches:
            views = tuple(batch.to(self.world.device) for batch in views)
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss, metrics = self._engine(*views)
            averages.add(loss, metrics, views[0].modalities)
            last = self._engine.is_gradient_accumulation_boundary()
            if last:
                reduced = averages.reduced(asked)
                self._optimiser.skip, pending = reduced.skip.float(), PendingStep(reduced)
            self._engine.backward(loss)
            self._fill_gradients()
            if last:
                self._clip_gradients()
            self._engine.step()
        if pending is None:
            raise ValueError(f"a step takes as many batches as engine.accumulation ({self.config.accumulation})")
        pending.if_applied(lambda: self.objective.after_step(progress))
        return pending

    def _forget_gradients(self) -> None:
        """Zero what ZeRO 3 keeps of the step before.

        It would take it once more for parameters that this step does not use, such as the 2D ones in a 3D step; then
        no two stages compute the same, and no resumed run what an uninterrupted one does.
        """
        if self._stage == 3:
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()

    def _fill_gradients(self) -> None:
        """Zeros for parameters that this step did not use, as every reduction gives them: the optimiser decays them."""
        if self._engine.enable_backward_allreduce:
            return
        for parameter in self.objective.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _clip_gradients(self) -> None:
        """At stage 0, where all ranks have the same gradients: DeepSpeed would have them agree on their norm."""
        if self._stage > 0 or self.config.clip == 0:
            return
        gradients = [each.grad for each in self.objective.parameters() if each.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).square().sum().sqrt()
        factor = (torch.full_like(norm, self.config.clip) / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)

    def evaluate(self) -> None:
        """Switch to evaluation mode."""
        self._engine.eval()

    def train(self) -> None:
        """Switch to training mode."""
        self._engine.train()

    def save(self, folder: Path, extra: dict[str, Any]) -> list[Written]:
        """Write weights, optimiser, random states and `extra` (JSON) into `folder`; every rank calls it.

        Gives the files that this rank wrote. Any ZeRO stage and world size can `load` them.
        """
        return self.snapshot(extra, copied=False).write(folder)

    def snapshot(self, extra: dict[str, Any], copied: bool = True) -> Snapshot:
        """What `save` writes, to be written while the training goes on; every rank calls it.

        Args:
            extra: JSON that `load` returns.
            copied: into host memory, over the copy of the snapshot before. Else it is written before the next step.
        """
        memory = self._memory if copied else None
        states = self._optimiser.state
        return model_state.snapshot(self.objective, self._shards(), states, extra, self.world, memory)

    def load(self, folder: Path) -> dict[str, Any]:
        """Read back what `save` wrote, bit for bit at the same world size; returns the `extra`."""
        extra = model_state.load(folder, self.objective, self._shards(), self._optimiser.state, self.world)
        for stepped, state in self._optimiser.state.items():  # kernels of a device count on the device
            if model_state.STEP in state and stepped.device.type != "cpu":
                state[model_state.STEP] = state[model_state.STEP].to(stepped.device)
        return extra

    def weights(self, folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
        """The objective's weights of names with `prefix`, in fp32 on the CPU.

        Args:
            folder: a checkpoint of this very state; it is read at ZeRO 3, where no rank holds the weights whole.
        """
        if self._stage == 3:
            with StateFiles(folder) as files:
                return files.weights(prefix)
        state = self.objective.state_dict()
        return {k: v.detach().float().cpu() for k, v in state.items() if k.startswith(prefix)}

    def _shards(self) -> list[ParameterShard]:
        return parameter_shards(self.objective, self._engine.optimizer, self._stage, self.world)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(values.to(self.world.device), self.world)


def _import_deepspeed(world: World) -> Any:
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls, in every run's log
    if world.device.type == "cpu":
        # Only its collectives in shared memory ask; left to itself, DeepSpeed runs a compiler in every process to know.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def deepspeed_config(config: EngineConfig, world: World) -> dict[str, Any]:
    return {
        # The loader decides what a batch is; DeepSpeed only needs numbers that multiply out.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "train_batch_size": config.accumulation * world.size,
        "gradient_clipping": config.clip if config.stage_of(world.size) > 0 else 0.0,
        "zero_optimization": _zero_config(config, world),
        **({"communication_data_type": "bf16"} if config.reduce == "bf16" else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own Adam compiles at the first start
        "steps_per_print": 1_000_000_000,
    }


def _zero_config(config: EngineConfig, world: World) -> dict[str, Any]:
    stage = config.stage_of(world.size)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    zero |= acceleration.reduction(stage, world.device)
    if stage == 3:  # the default would keep the whole of most models gathered from forward to backward
        zero["stage3_max_reuse_distance"] = BUCKET
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
    return zero
