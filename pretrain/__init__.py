"""Self-supervised pre-training: objectives, losses, the DeepSpeed engine, exact resume."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.training.loop import RunResult


def run(config: "PretrainConfig") -> "RunResult":
    """Pre-train as `config` says, continuing from the run folder's newest complete checkpoint if there is one."""
    from scanfoundry.pretrain.training.loop import run as run_loop  # heavy imports wait until they are needed

    return run_loop(config)
