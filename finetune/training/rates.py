"""The learning rate of every group of parameters at each step."""

import math

import torch

from scanfoundry.finetune.training.setup import TrainSetup


def factor(step: int, done: float, warmup: int, frozen: int) -> float:
    """Share of the base rate: 0 while frozen, then a linear warm-up, under a half cosine over `done` in 0..1."""
    if step < frozen:
        return 0.0
    rise = min(1.0, (step - frozen + 1) / warmup) if warmup else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def rise_and_fall(done: float, ahead: float, rising: float) -> float:
    """Share of the peak rate: a linear warm-up, then a half cosine to 0 over what is left.

    Args:
        done: share of the training, or of its part, that is over.
        ahead: the same after the step that the rate is for, so that the first step has a rate.
        rising: share of it that the warm-up takes, from 0 to below 1.
    """
    rise = min(1.0, ahead / rising) if rising else 1.0
    fallen = min(1.0, max(0.0, (done - rising) / (1 - rising)))
    return rise * 0.5 * (1 + math.cos(math.pi * fallen))


class Rates:
    """Learning rates of all groups of `make_optimiser` at each step; what stands still needs no gradients."""

    def __init__(self, optimiser: torch.optim.Optimizer, setup: TrainSetup, decoder_scale: float = 1.0) -> None:
        self._groups, self._setup, self._decoder_scale = optimiser.param_groups, setup, decoder_scale
        self.thawed = 0  # the first step at which a staged encoder moves, as far as is known

    def set(self, step: int, done: float) -> None:
        """Set the rates of a step; `done`: share of the training that is over."""
        if self._setup.frozen(step, done):
            self.thawed = step + 1
        for group in self._groups:
            share, still = self._share(group["encoder"], group["loaded"], step, done)
            group["lr"] = group["base_lr"] * share
            if group["encoder"] or group["loaded"]:
                for parameter in group["params"]:
                    parameter.requires_grad_(not still and group["base_lr"] > 0)

    def _share(self, encoder: bool, loaded: bool, step: int, done: float) -> tuple[float, bool]:
        """Share of a group's base rate, and whether the group stands still."""
        schedule, recipe = self._setup.schedule, self._setup.arm.recipe
        ahead = self._setup.ahead(step, done)
        if recipe == "warmup":
            return rise_and_fall(done, ahead, schedule.warmup_share), False
        if recipe == "sawtooth":
            return self._sawtooth(loaded, done, ahead)
        thawed = self.thawed if encoder else 0
        return factor(step, done, schedule.warmup_steps, thawed), step < thawed

    def _sawtooth(self, loaded: bool, done: float, ahead: float) -> tuple[float, bool]:
        """First what was not pre-trained, with a warm-up and a decay of its own; then everything."""
        first, rising = self._setup.schedule.decoder_share, self._setup.schedule.warmup_share
        if done < first:
            return (
                (0.0, True)
                if loaded
                else (self._decoder_scale * rise_and_fall(done / first, ahead / first, 0.5), False)
            )
        rest = 1 - first
        return rise_and_fall((done - first) / rest, (ahead - first) / rest, rising / rest), False
