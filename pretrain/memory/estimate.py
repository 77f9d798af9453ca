"""The estimate for a run: its model, its crops and its engine's settings put together."""

from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.engine import deepspeed_config
from scanfoundry.pretrain.memory.states import FP32, Model, Setting, Usage, checkpoint_bytes, usage
from scanfoundry.pretrain.memory.trace import Trace, fake_objective, trace

Device = Literal["cpu", "cuda"]


class Calculator:
    """Memory per rank of a run on `world` ranks, at its own or another ZeRO stage, with and without checkpointing."""

    def __init__(self, config: PretrainConfig, world: int, device: Device = "cuda") -> None:
        self.config, self.world, self.device = config, world, device
        self.model = count(config)
        self._trace = cache(self._trace_once)

    def usage(self, stage: int | None = None, checkpointing: bool | None = None, offload: bool | None = None) -> Usage:
        """Bytes on a rank; None: as configured."""
        engine = self.config.engine
        if checkpointing is None:
            checkpointing = engine.activation_checkpointing
        if offload is None:
            offload = engine.offload
        setting = self._setting(engine.zero_stage if stage is None else stage, offload)
        passes = [self._trace(crop, samples, checkpointing) for crop, samples in self.crops()]
        found = usage(self.model, setting, passes, self._loaded(passes))
        return replace(found, host=found.host + self._copy())

    def _copy(self) -> int:
        """Bytes on the host from which a checkpoint is written beside the training."""
        if not self.config.background_checkpoints:
            return 0
        return checkpoint_bytes(self.model, self.config.optimiser.name) // self.world + self.model.buffers

    def _setting(self, stage: int, offload: bool) -> Setting:
        engine = self.config.engine.model_copy(update={"zero_stage": stage, "offload": offload})
        world = World(0, self.world, 0, self.world, torch.device(self.device))
        zero: dict[str, Any] = deepspeed_config(engine, world)["zero_optimization"]
        names = {
            "reduce_bucket": "reduce_bucket_size",
            "prefetch_bucket": "stage3_prefetch_bucket_size",
            "max_reuse_distance": "stage3_max_reuse_distance",
        }
        sizes = {ours: int(zero[theirs]) for ours, theirs in names.items() if theirs in zero}
        stage, optimiser = engine.stage_of(self.world), self.config.optimiser.name
        sizes["buffers"] = 2 if zero.get("overlap_comm") else 1
        return Setting(stage, self.world, self.device, optimiser, offload, **sizes)

    def crops(self) -> list[tuple[Size3D, int]]:
        """(crop, crops of it on a rank) of each kind that the run may see."""
        data = self.config.data
        kinds: list[tuple[Size3D, int, str]] = []
        if data.crop_2d is not None:
            kinds.append(((1, *data.crop_2d), data.batch_2d, "batch_2d"))
        if data.crop_3d is not None:
            kinds.append((data.crop_3d, data.batch_3d, "batch_3d"))
        parts = self.world * self.config.engine.accumulation
        for _, batch, name in kinds:
            if batch % parts:
                raise UserError(
                    f"data.{name} ({batch}) does not divide among {self.world} processes x "
                    f"{self.config.engine.accumulation} micro-batches; make it a multiple of {parts}"
                )
        return [(crop, batch // parts) for crop, batch, _ in kinds]

    def _loaded(self, passes: list[Trace]) -> int:
        """Bytes of the crops that the loop holds through a step: of all micro-batches, as loaded and as views."""
        data = self.config.data
        pairs = 2 if data.positives in ("crops", "study") else 1
        loaded = [
            run.inputs + pairs * samples * crop[0] * crop[1] * crop[2] * (FP32 * data.channels + 1)
            for run, (crop, samples) in zip(passes, self.crops(), strict=True)
        ]
        return self.config.engine.accumulation * max(loaded)

    def _trace_once(self, crop: Size3D, samples: int, checkpointing: bool) -> Trace:
        return trace(self.config, crop, samples, checkpointing, self.device)


def count(config: PretrainConfig) -> Model:
    """The objective's parameters, without their memory."""
    objective, _ = fake_objective(config)
    trainable = [p.numel() for p in objective.parameters() if p.requires_grad]
    frozen = [p.numel() for p in objective.parameters() if not p.requires_grad]
    buffers = sum(b.numel() * b.element_size() for b in objective.buffers())
    return Model(sum(trainable), sum(frozen), max(trainable), buffers)
