"""Model FLOPs utilisation (MFU, Chowdhery et al. 2022, arXiv 2204.02311): the share of a device's peak that is used."""

import torch

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.plan import StepKind
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.logging.device_peaks import peak_tflops
from scanfoundry.pretrain.memory.flops import flops

TERA = 1e12


class Utilisation:
    """TFLOPS and MFU of each step, on the first rank; nothing where the device's peak is not known.

    The operations of a kind of step are counted at its first step, on tensors without numbers, which takes seconds.
    """

    def __init__(self, config: PretrainConfig, world: World, kinds: list[StepKind]) -> None:
        self._config, self._world = config, world
        self._kinds = {kind.crop: kind.batch for kind in kinds}
        self._peak = peak_of(config, world) if world.is_main else None
        self._counted: dict[Size3D, int] = {}

    def of_step(self, crop: Size3D, seconds: float) -> dict[str, float]:
        """What a step with crops (D, H, W) that took so long reached, as a run logs it."""
        if self._peak is None:
            return {}
        if crop not in self._counted:
            accumulation = self._config.engine.accumulation
            samples = self._kinds[crop] // (self._world.size * accumulation)
            self._counted[crop] = accumulation * flops(self._config, crop, samples)
        reached = self._counted[crop] / seconds / TERA
        return {"tflops": reached, "mfu": reached / self._peak}


def peak_of(config: PretrainConfig, world: World) -> float | None:
    """TFLOPS of one device at the run's precision: what `peak_tflops` says, else what is known of the device."""
    if config.peak_tflops is not None:
        return config.peak_tflops
    if world.device.type != "cuda":
        return None
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return peak_tflops(torch.cuda.get_device_name(world.device), config.engine.precision, tf32)
