"""The arithmetic of a forward and backward pass, counted without doing it."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.collectives import alone
from scanfoundry.pretrain.memory.trace import fake_objective, fake_views

Shape = Any  # as torch's formulas take it


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """torch has formulas for attention on GPUs alone; fake tensors run as on a CPU."""
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flops(config: PretrainConfig, crop: Size3D, samples: int) -> int:
    """Floating-point operations of one rank's pass over `samples` crops (D, H, W), in products and convolutions.

    Counted is what the objective computes: of packed blocks those that are visible, with their halo, and never the
    dense map; of a teacher its forward pass. The second forward pass of activation checkpointing is left out, as the
    usual definition of model FLOPs asks. A product and a sum count as two.
    """
    with alone(), torch.random.fork_rng(devices=[]):
        objective, mode = fake_objective(config)
        with mode:
            views = fake_views(config, objective, crop, samples)
        counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
        with counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.engine.precision == "bf16"):
                loss, _ = objective(*views)
            loss.backward()
    return counter.get_total_flops()
