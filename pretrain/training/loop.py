"""The pre-training loop: one run from its folder's newest checkpoint to its last step or a request to stop."""

import errno
from collections.abc import Callable
from contextlib import ExitStack

import torch

from scanfoundry.backbones.models.release import remove_leftovers
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.extras import check_installed
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import Position
from scanfoundry.datasets.shards.hashes import Hashes
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.preemption import StopRequest
from scanfoundry.pretrain.distributed.watchdog import Watchdog, collective_timeout_s
from scanfoundry.pretrain.distributed.world import World, barrier, join
from scanfoundry.pretrain.engine.averaged_encoder import add_average
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.logging.monitors import Monitors
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.probes.probe_setup import Site
from scanfoundry.pretrain.probes.running import Probes
from scanfoundry.pretrain.training.initialize import record, start_encoder
from scanfoundry.pretrain.training.planned import planned
from scanfoundry.pretrain.training.release import ReleaseWriter
from scanfoundry.pretrain.training.run_folder import check_same_run, claim, held
from scanfoundry.pretrain.training.step_log import StepLog
from scanfoundry.pretrain.training.steps import RunResult, Steps
from scanfoundry.pretrain.training.teachers import bring_teachers, record_teachers, with_teachers
from scanfoundry.pretrain.views import Views, check_depth, check_views

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # a person's to mend


def run(
    config: PretrainConfig, stop: StopRequest | None = None, hung: Callable[[str], None] | None = None
) -> RunResult:
    """Pre-train, resuming in this order:

    1. join the process group and fix CPU threads (the reduction order depends on them);
    2. hold the run folder, so that no other process writes to it;
    3. refuse one whose configuration computes something else;
    4. find the newest complete checkpoint, of whatever world size;
    5. build encoder, from the seed or `init`, and objective;
    6. open the stream of crops at the position in its seal;
    7. load weights, optimiser and RNG states;
    8. drop logged metrics past its step.

    stop: handlers that stand already. hung: is told, in one sentence, that the watchdog is about to end the process.
    """
    check_installed(*(["tensorboard"] if config.tensorboard else []))
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest())
        world = join(config.device, config.threads, collective_timeout_s(config.step_timeout_s))
        check_same_run(config)  # before a lock is put into what may be somebody's home
        stack.enter_context(held(config.run_dir, world))
        check_same_run(config)
        watchdog = stack.enter_context(Watchdog(config.step_timeout_s, world.rank, hung))
        try:
            return _run(config, world, stop, watchdog)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(
                f"cannot write to {error.filename or config.run_dir}: {error.strerror}; "
                "once that is mended, the same command continues from the newest checkpoint"
            ) from error


def _run(config: PretrainConfig, world: World, stop: StopRequest, watchdog: Watchdog) -> RunResult:
    root = config.run_dir / "checkpoints"
    if world.is_main:
        checkpoint.clean(root)
        remove_leftovers(config.run_dir)
    barrier(world)
    found = checkpoint.newest(root, print if world.is_main else None, world)
    step, stream = checkpoint.position(found, config.seed) if found else (0, Position())
    torch.manual_seed(config.seed)
    start = start_encoder(config, fresh=found is None)
    encoder = start.encoder
    objective = config.objective.build(encoder)
    origin = start.fill(objective)
    taught = bring_teachers(config, objective, fresh=found is None)
    add_average(objective, config.ema)
    with CropLoader(config.data, config.seed, world.rank, world.size, config.engine.accumulation, stream,
                    world.device, planned(config, world, found, step)) as loader:  # fmt: skip
        check_views(config.data, objective, [kind.crop for kind in loader.plan.kinds], loader.plan.modalities)
        check_depth(objective, loader.plan.volumes)
        seen = Hashes([loader.hashes.halves()], {*origin.patients, *taught.patients})
        site = Site(seen, frozenset(loader.sites.values()))
        probes = Probes(config, encoder, world, site)
        engine = Engine(objective, config.optimiser, config.engine, world, loader.plan.modalities)
        monitors = Monitors(config, world, loader.plan)
        if world.is_main:
            claim(config)
            record(config, origin)
            record_teachers(config, taught)
        origin = with_teachers(origin, taught)
        first_line = origin.summary
        if found is not None:
            state = engine.load(found)
            monitors.first = state["monitors"]
            first_line = _continuing(step, state["world_size"], world.size)
        settings = config.model_dump(mode="json")
        tracker = Tracker(config.run_dir, config.wandb, settings, step, config.steps, world.is_main,
                          config.tensorboard)  # fmt: skip
        for line in (first_line, *loader.messages, *probes.messages):
            tracker.info(line)
        try:
            releases = ReleaseWriter(config, engine.objective, loader, origin) if world.is_main else None
            with CheckpointWriter(root, config.keep_last, world, tracker.info) as writer:
                views = Views(config.data, engine.objective.views, engine.objective.clean)
                log = StepLog(config, world, engine, loader, tracker, writer, monitors, probes, stop, views)
                steps = Steps(config, world, engine, loader, tracker, writer, releases, log, stop, watchdog, views)
                return steps.advance(step)
        finally:
            tracker.close()


def _continuing(step: int, before: int, now: int) -> str:
    return f"continuing from step {step}" + ("" if before == now else f", with {now} processes after {before}")
