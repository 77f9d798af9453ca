"""A sum is the sum, gradients included; it owns its encoder once; it trains, saves and loads at every ZeRO stage."""

import json

import pytest
import torch
from pydantic import ValidationError

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig

VIT = ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(4, 8, 8))
MAE = {"name": "mae", "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2}
MOCO = {"name": "contrastive", "loss": "moco_v3", "projector_hidden": 32, "projector_dim": 16}
TERMS = [{"weight": 0.7, "objective": MAE}, {"weight": 2.5, "objective": MOCO}]


def make(terms=TERMS, backbone=VIT):
    torch.manual_seed(0)
    return SumConfig.model_validate({"terms": terms}).build(build(backbone)).double()


def make_views(shape=(8, 16, 24), size=4):
    torch.manual_seed(1)
    voxels, names = torch.randn(2, size, 1, *shape, dtype=torch.float64), [str(i) for i in range(size)]
    valid = torch.ones(size, 1, *shape, dtype=torch.bool)
    return [Batch(v, valid, torch.arange(size), names, ["mr"] * size, ["a"] * size, 0) for v in voxels]


@pytest.mark.parametrize("shape", [(8, 16, 24), (1, 16, 24)])
def test_loss_gradients_and_metrics_are_the_weighted_sum_of_the_terms(shape):
    objective, views = make(), make_views(shape)
    loss, metrics = objective(*views)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    total, plain = 0.0, [torch.zeros_like(p) for p in parameters]
    for weight, term in ((0.7, objective.terms["mae"]), (2.5, objective.terms["contrastive"])):
        own, of_term = term(*views[: term.views])
        total += weight * own.item()
        grads = torch.autograd.grad(own, parameters, allow_unused=True)
        plain = [p if g is None else p + weight * g for p, g in zip(plain, grads, strict=True)]
        for name, value in {"loss": own.detach(), **of_term}.items():
            assert torch.equal(metrics.pop(f"{term.config.name}/{name}"), value)
    assert not metrics
    assert loss.item() == pytest.approx(total, rel=1e-12)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other, rtol=1e-12, atol=1e-12)


def test_the_encoder_is_one_and_stands_once_in_the_state_dict_and_in_the_parameters():
    objective = make()
    assert all(term.encoder is objective.encoder for term in objective.terms.values())
    keys = list(objective.state_dict())
    assert {key.removeprefix("encoder.") for key in keys if key.startswith("encoder.")} == set(build(VIT).state_dict())
    assert not [key for key in keys if key.startswith("terms.") and ".encoder." in key and ".follower." not in key]
    assert len(objective.state_dict()) == len(
        {v.data_ptr() for v in objective.state_dict().values() if v.numel() > 1}
    ) + sum(v.numel() <= 1 for v in objective.state_dict().values())
    assert objective.views == 2
    assert make([TERMS[0]]).views == 1


def test_pictures_and_steps_are_passed_on():
    objective, views = make(), make_views()
    assert list(objective.show(*views)) == [
        "mae scan", "mae scan: visible", "mae scan: reconstruction", "contrastive first view", "contrastive second view"
    ]  # fmt: skip
    seen = []
    for term in objective.terms.values():
        term.after_step = seen.append
    objective.after_step(0.25)
    assert seen == [0.25, 0.25]
    assert [v.config.name for view in (0, 1) for v in objective.viewers(view)] == ["mae", "contrastive", "contrastive"]


def test_terms_are_told_apart_and_must_go_with_the_backbone():
    with pytest.raises(ValidationError, match="same name"):
        SumConfig.model_validate({"terms": [TERMS[0], TERMS[0]]})
    two = make([TERMS[0], {"name": "edges", "objective": MAE | {"gradient_weight": 1.0}}])
    _, metrics = two(*make_views()[:1])
    assert set(metrics) == {"mae/loss", "mae/reconstruction", "edges/loss", "edges/reconstruction", "edges/gradient"}
    with pytest.raises(ValidationError):
        SumConfig.model_validate({"terms": []})
    with pytest.raises(ValidationError):
        SumConfig.model_validate({"terms": [{"objective": {"name": "sum", "terms": TERMS}}]})
    with pytest.raises(UserError, match="decoder_dim is for transformers"):
        make(backbone=STUNetConfig(size="S"))
    with pytest.raises(UserError, match="multiple of"):
        make().check_shape((1, 17, 24))


CODE = """
import json, os
from pathlib import Path
import torch
from resumed import losses_when_resumed
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig

terms = json.loads(os.environ["TERMS"])
vit = ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(4, 8, 8))
stage = int(os.environ["STAGE"])
world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"]) / f"stage-{stage}-ranks-{world.size}"

def engine():
    torch.manual_seed(0)
    objective = SumConfig.model_validate({"terms": terms}).build(build(vit))
    optimiser = OptimiserConfig(warmup_steps=0).filled("convolutional")
    return Engine(objective, optimiser, EngineConfig(zero_stage=stage), world, ["mr"])

def views(step):
    rows = slice(16 // world.size * world.rank, 16 // world.size * (world.rank + 1))
    g = torch.Generator().manual_seed(step)
    shape = (1, 16, 16) if step % 2 else (4, 16, 16)
    voxels, names = torch.randn(2, 16, 1, *shape, generator=g), [str(i) for i in range(16)][rows]
    valid = torch.ones(16, 1, *shape, dtype=torch.bool)[rows]
    kinds = ["mr"] * len(names)
    return tuple(Batch(v[rows], valid, torch.arange(16)[rows], names, kinds, kinds, step) for v in voxels)

def step(e, number):
    return e.step([views(number)], 1e-4, number / 4).loss

losses, straight = losses_when_resumed(engine, step, world, root / "middle")
encoder = {k.removeprefix("encoder."): v for k, v in straight.items() if k.startswith("encoder.")}
fresh = build(vit)
began = {k: v.clone() for k, v in fresh.state_dict().items()}
fresh.load_state_dict(encoder)  # exactly the encoder's weights, as the release has them
assert sum(not torch.equal(v, began[k]) for k, v in encoder.items()) > 20  # and they were trained
copies = [k for k in straight if ".follower.encoder." in k]
assert len(copies) == len(encoder)
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_under_zero_two_ranks_train_save_and_load_it_as_one_rank_does_at_stage_0(ranks, shallow_vit):
    """MAE and MoCo v3, whose copies follow and are saved; also that resuming is bit-identical (in CODE)."""
    one = json.loads(ranks(CODE, 1, STAGE="0", TERMS=json.dumps(TERMS)).splitlines()[-1])
    for stage in (2, 3):
        two = json.loads(ranks(CODE, 2, STAGE=str(stage), TERMS=json.dumps(TERMS)).splitlines()[-1])
        assert two == pytest.approx(one, rel=1e-5)
