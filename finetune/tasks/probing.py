"""Probes of a frozen encoder: features computed once for every training scan, then heads that train in seconds."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.backbones.probes.classification import fit_logistic
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.config.recipes import ProbeConfig
from scanfoundry.finetune.heads.probes import AttentiveProbe, LinearProbe, NeighbourProbe
from scanfoundry.finetune.sample import Sample, centred
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.training.features import FeatureStore
from scanfoundry.finetune.training.resuming import gathered, spread
from scanfoundry.finetune.training.saving import Snapshot
from scanfoundry.finetune.training.setup import History, TrainSetup
from scanfoundry.finetune.training.slot import NOWHERE, Slot

ViewFeatures = list[
    list[Tensor]
]  # of each scan, of each of its views: the deepest features (F, d, h, w), half precision


def fit_probe(
    adapter: Adapter[Any, Any],
    encoder: Encoder,
    samples: Sequence[Sample[Any]],
    cases: Sequence[Case],
    course: TrainSetup,
    config: ProbeConfig,
    store: FeatureStore,
    slot: Slot = NOWHERE,
) -> tuple[TaskModel, History]:
    """The probe `course.arm.recipe` on the frozen encoder; gives the whole model. UserError where a class is absent.

    cases: of each sample; the strength of the logistic regression is chosen by folds of their patients.
    slot: where the training of an attentive probe is saved now and then, and goes on from.
    """
    started = time.monotonic()
    labels = np.array([int(sample.target) for sample in samples])  # type: ignore[arg-type]
    n_classes = len(adapter.spec.classes)
    if len(np.unique(labels)) < n_classes:
        raise UserError("a probe needs a training case of every class: raise 'shots' or take another seed")
    encoder.to(course.device).eval()
    views = features(adapter, encoder, samples, cases, course, config.views, store)
    rows = np.stack([np.stack([_pooled(view) for view in of_scan]) for of_scan in views])  # n v f
    curve = [(1, 0.0)] * 0
    model = adapter.build(encoder)
    if isinstance(model, NeighbourProbe):
        model.set(torch.from_numpy(rows[:, 0]), torch.from_numpy(labels))
    elif isinstance(model, LinearProbe):
        owners = np.array([case.patient for case in cases])
        per_scan = rows.shape[1]
        rows = rows.reshape(-1, rows.shape[2])
        model.set(*fit_logistic(rows, np.repeat(labels, per_scan), np.repeat(owners, per_scan).tolist()))
    else:
        assert isinstance(model, AttentiveProbe)
        curve = _train_attention(model.to(course.device), views, labels, course, config, slot)
    seconds = time.monotonic() - started
    return model.to(course.device), History(steps=curve[-1][0] if curve else 0, seconds=seconds, loss=curve)


def features(
    adapter: Adapter[Any, Any],
    encoder: Encoder,
    samples: Sequence[Sample[Any]],
    cases: Sequence[Case],
    course: TrainSetup,
    n_views: int,
    store: FeatureStore,
) -> ViewFeatures:
    """Deepest features of every sample: as prediction sees it, then `n_views - 1` times augmented by seeds."""
    found: ViewFeatures = []
    for sample, case in zip(samples, cases, strict=True):
        of_scan = [store.get(case.key, lambda: still_features(adapter, encoder, sample, course.device))]  # noqa: B023
        for view in range(1, n_views):
            rng = np.random.default_rng([course.seed, 2, int(case.key[:8], 16), view])
            name = f"{case.key}-{course.seed}-{view}"
            image = adapter.batch([sample], rng, course.augmentation, course.schedule.foreground)[0]
            of_scan.append(store.get(name, lambda: _encode(encoder, image, course.device)))  # noqa: B023
        found.append(of_scan)
    return found


def still_features(adapter: Adapter[Any, Any], encoder: Encoder, sample: Sample[Any], device: torch.device) -> Tensor:
    """The deepest features (F, d, h, w) of a scan as prediction sees it."""
    return _encode(encoder, centred(sample, adapter.spec.plan), device)


@torch.inference_mode()
def _encode(encoder: Encoder, image: Tensor, device: torch.device) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return encoder(image.to(device))[-1][0].float()


def _pooled(features: Tensor) -> np.ndarray:
    return features.float().mean((1, 2, 3)).numpy()


def _train_attention(
    probe: AttentiveProbe, views: ViewFeatures, labels: np.ndarray, course: TrainSetup, config: ProbeConfig, slot: Slot
) -> list[tuple[int, float]]:
    """AdamW with a half cosine over `config.steps`; each step one view of up to 64 scans. Gives the loss curve."""
    head = [p for name, p in probe.named_parameters() if not name.startswith("encoder.")]
    optimiser = torch.optim.AdamW(head, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    rng = np.random.default_rng([course.seed, 3])
    truth, curve = torch.from_numpy(labels).to(course.device), [(0, 0.0)] * 0
    weights = torch.from_numpy(len(labels) / np.bincount(labels)).float().to(course.device)
    probe.train()

    def state() -> Snapshot:
        facts = {"curve": curve, "rng": rng.bit_generator.state, "schedule": schedule.state_dict()}
        return gathered(course.device, probe, optimiser, probe=({}, facts))

    if (found := slot.read()) is not None:
        _, facts = spread(found, course.device, probe, optimiser)["probe"]
        curve = [(step, loss) for step, loss in facts["curve"]]
        rng.bit_generator.state = facts["rng"]
        schedule.load_state_dict(facts["schedule"])
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        slot.goes_on(f"step {len(curve)} of the probe")
    with slot.soon():
        for step in range(len(curve), config.steps):
            chosen = rng.permutation(len(views))[:64]
            batch = torch.stack([views[i][rng.integers(len(views[i]))] for i in chosen]).float().to(course.device)
            loss = F.cross_entropy(probe.head(batch), truth[chosen], weight=weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            curve.append((step + 1, float(loss.detach())))
            if step + 1 < config.steps:
                slot.chance(f"step {step + 1} of the probe", state)
    return curve
