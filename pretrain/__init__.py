"""Self-supervised pre-training: objectives, losses, the DeepSpeed engine, exact resume.

`run` is a whole pre-training, as `scanfoundry pretrain` does it; `training/loop.py` leads through it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.training.loop import RunResult


def run(config: "PretrainConfig") -> "RunResult":
    """Pre-train, continuing from the run folder's newest complete checkpoint if there is one.

    Args:
        config: the whole run, of which `configs/pretrain/*.yaml` are examples.

    Returns:
        The run folder, the last step, and whether the run is complete.

    Raises:
        UserError: the configuration, the data or the run folder needs a person's attention.
    """
    from scanfoundry.pretrain.training.loop import run as run_loop  # heavy imports wait until they are needed

    return run_loop(config)
