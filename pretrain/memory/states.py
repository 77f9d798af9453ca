"""What DeepSpeed holds on a rank beside the pass itself, stage by stage, and when.

Read from deepspeed 0.19 (`runtime/zero/stage_1_and_2.py`, `stage3.py`, `partition_parameters.py`) with fp32 weights,
and held against measurement by `benchmarks/memory.py`. It is more than the ZeRO paper's formula:

- stages 1 and 2 keep a second fp32 copy of the rank's partition beside the whole flat weights, and a reduce bucket of
  `reduce_bucket_size` numbers through the backward pass, however small the model is;
- a parameter that crosses the border of a partition has its whole gradient on both ranks;
- stage 3 keeps weights, their fp32 copy and gradients in partitions, the reduce bucket all the time, and whatever of
  the gathered weights is used again within `stage3_max_reuse_distance` numbers: with the default of 1e9 nearly all;
- the step flattens the partition's gradients, and the optimiser works with temporaries.
"""

from dataclasses import dataclass, field
from typing import Literal

from scanfoundry.pretrain.memory.trace import Trace

FP32 = 4
ALLREDUCE = 500_000_000  # numbers that stage 0 reduces at a time, through a flat copy
STATE_BYTES = {"adamw": 8, "lamb": 8, "sgd": 4}  # of a parameter


@dataclass(frozen=True)
class Model:
    """Numbers of an objective's parameters: trainable, frozen (momentum copies), in the largest one; buffers' bytes."""

    trainable: int
    frozen: int
    largest: int
    buffers: int

    @property
    def weights(self) -> int:
        """All of them."""
        return self.trainable + self.frozen


def checkpoint_bytes(model: Model, optimiser: str) -> int:
    """Of weights and the optimiser's states, which is what a checkpoint holds, but for buffers and averages."""
    return FP32 * model.weights + STATE_BYTES[optimiser] * model.trainable


@dataclass(frozen=True)
class Setting:
    """What decides about memory. Bucket sizes are in numbers, as in DeepSpeed's configuration."""

    stage: int
    world: int
    device: Literal["cpu", "cuda"]
    optimiser: str = "adamw"
    offload: bool = False  # the optimiser's states and partition on the host
    reduce_bucket: int = 500_000_000
    buffers: int = 1  # of that size at stages 1 and 2: one is filled while the other is reduced
    prefetch_bucket: int = 50_000_000
    max_reuse_distance: int = 1_000_000_000


@dataclass(frozen=True)
class Usage:
    """Bytes on a rank: what lies there between steps, by part, and the most in each phase of a step; `host`: of offload
    and of the copy that a checkpoint is written from."""

    held: dict[str, int]
    forward: int
    backward: int
    step: int
    host: int = 0
    activations: int = field(default=0)  # the most of them at any time, a part of the phases

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.forward, self.backward, self.step)


def usage(model: Model, setting: Setting, passes: list[Trace], batches: int) -> Usage:
    """Memory of steps with any of these passes (2D and 3D take turns); `batches`: bytes of what the loop has loaded."""
    held, host = _held(model, setting)
    between = sum(held.values()) + batches
    gathered = _gathered(model, setting)
    prefetch = FP32 * min(model.weights, setting.prefetch_bucket) if gathered else 0
    return Usage(
        held={**held, "batches": batches},
        forward=between + gathered + prefetch + max(each.forward for each in passes),
        backward=between + max(_backward(model, setting, each, gathered) for each in passes),
        step=between + _step(model, setting),
        host=host,
        activations=max(each.peak for each in passes),
    )


def _held(model: Model, setting: Setting) -> tuple[dict[str, int], int]:
    """Bytes between two steps by part, and those on the host."""
    share = FP32 * model.trainable // (setting.world if setting.stage else 1)
    states = share * STATE_BYTES[setting.optimiser] // FP32
    weights = FP32 * model.weights // (setting.world if setting.stage == 3 else 1)
    held = {"weights": weights + model.buffers, "master copy": 0, "gradients": 0, "optimiser": states, "buckets": 0}
    if setting.stage:
        held["master copy"] = share
    if setting.stage == 3:
        held["gradients"], held["buckets"] = share, FP32 * setting.reduce_bucket
    if not (setting.offload and setting.stage):
        return held, 0
    host = held["master copy"] + held["optimiser"] + 2 * share  # and gradients, and a buffer for what goes back
    largest = FP32 * model.largest if setting.stage < 3 else 0
    held |= {"master copy": 0, "gradients": 0, "optimiser": 0, "buckets": held["buckets"] + largest}
    return held, host


def _gathered(model: Model, setting: Setting) -> int:
    """Whole weights that ZeRO 3 has at the end of the forward pass: those that the backward pass needs soon."""
    if setting.stage < 3 or setting.world == 1:
        return 0
    return FP32 * min(model.weights, max(setting.max_reuse_distance // 2, model.largest))


def _owned(model: Model, setting: Setting) -> int:
    """Bytes of the gradients that a rank keeps after reduction at stages 1 and 2."""
    if setting.offload:
        return 0
    border = model.largest if setting.world > 1 else 0
    return FP32 * min(model.trainable, model.trainable // setting.world + border)


def _backward(model: Model, setting: Setting, run: Trace, gathered: int) -> int:
    """The most in the backward pass, beside what lies there between steps."""
    whole, bucket = FP32 * model.trainable, FP32 * setting.reduce_bucket
    reduced = min(whole, bucket)
    if setting.stage == 0:
        flat = min(whole, FP32 * ALLREDUCE) if setting.world > 1 else 0
        return max(max(done + held for done, held in run.backward), whole + flat)
    owned = _owned(model, setting)
    buckets = setting.buffers * bucket
    if setting.stage == 1:
        return buckets + max(max(done + held for done, held in run.backward), whole + owned)
    if setting.stage == 2:
        shares = ((done // bucket * bucket / whole, held) for done, held in run.backward)
        return buckets + max(owned, *(round(share * owned) + held for share, held in shares))
    left = (min(gathered, FP32 * model.weights - done) + held if gathered else held for done, held in run.backward)
    return max(reduced + reduced // setting.world, *left)


def _step(model: Model, setting: Setting) -> int:
    """The most in the optimiser's step, beside what lies there between steps: gradients, and temporaries."""
    whole = FP32 * model.trainable
    if setting.stage == 0:
        return whole + (2 * FP32 * model.largest if setting.device == "cpu" else whole)
    if setting.offload:
        return 0
    share = whole // setting.world
    flat_and_temporaries = share * (3 if setting.device == "cpu" else 2)
    return flat_and_temporaries + (_owned(model, setting) if setting.stage < 3 else 0)
