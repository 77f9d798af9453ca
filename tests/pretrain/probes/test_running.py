"""Probes in a run: the same numbers at any ZeRO stage and world size, and no bit of the run is another one."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
import warm
import yaml

from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.probes.probe_setup import Site
from scanfoundry.pretrain.probes.running import Probes

pytestmark = pytest.mark.usefixtures("shallow_vit")
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
NOBODY = Site(frozenset(), frozenset())
BACKBONES = {
    "stunet": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
    "vit": {"name": "vit", "size": "Ti", "patch_2d": [4, 4], "patch_3d": [2, 4, 4]},
    "mednext": {"name": "mednext", "size": "S"},
    "resenc": {"name": "resenc", "features": [16, 32, 48], "blocks": [1, 1, 1], "strides": [[2, 2, 2]] * 2},
}


def probes(shards: dict[str, Path]) -> list[dict]:
    images = {"path": str(shards["images"]), "crop": [24, 32]}
    return [
        {"kind": "knn", "target": "kind", "neighbours": 5, "data": images},
        {"kind": "linear", "target": "kind", "data": images},
        {"kind": "segmentation", "points": 64, "data": {"path": str(shards["volumes"]), "crop": [12, 24, 20]}},
        {
            "kind": "segmentation",
            "name": "slices",
            "points": 64,
            "data": {"path": str(shards["volumes"]), "crop": [24, 20]},
        },
    ]


def content(tiny: dict[str, Path], shards: dict[str, Path], run_dir: Path, backbone="stunet", **changes) -> dict:
    crops = {"crop_2d": [32, 32], "crop_3d": [16, 32, 32]} if backbone == "mednext" else {}
    return {
        "run_dir": str(run_dir), "seed": 3, "steps": 5, "checkpoint_every": 2, "threads": 1, "monitor_crops": 0,
        "backbone": BACKBONES[backbone] if isinstance(backbone, str) else backbone, "probes": probes(shards),
        "objective": {"name": "contrastive", "projector_hidden": 16, "projector_dim": 8},
        "data": {
            "sources": [{"name": name, "path": str(path)} for name, path in tiny.items()],
            "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": 0, **crops,
        },
        "optimiser": {"warmup_steps": 2},
    } | changes  # fmt: skip


def config(*given, **changes) -> PretrainConfig:
    return check(PretrainConfig, content(*given, **changes), "test")


MEASURE = """
import json, os
import torch
from scanfoundry.backbones.registry import build
from scanfoundry.pretrain.engine.averaged_encoder import EmaConfig, add_average
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.ema import local
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.probes.probe_setup import Site
from scanfoundry.pretrain.probes.running import Probes

world = join("cpu", 1)
config = PretrainConfig.model_validate_json(os.environ["CONFIG"])
for stage, precision, ema in json.loads(os.environ["CASES"]):
    torch.manual_seed(0)
    encoder = build(config.backbone)
    objective = config.objective.build(encoder)
    add_average(objective, EmaConfig() if ema else None)
    probes = Probes(config, encoder, world, Site(frozenset(), frozenset()))
    engine = Engine(objective, config.optimiser, EngineConfig(zero_stage=stage, precision=precision), world)
    engine.train()
    state, weights = torch.get_rng_state(), [local(p)[0].clone() for p in objective.parameters()]
    one, other = probes.measure(engine, 2), probes.measure(engine, 2)
    assert torch.equal(state, torch.get_rng_state()) and engine.objective.training
    assert all(torch.equal(local(p)[0], before) for p, before in zip(objective.parameters(), weights))
    assert not any(p.grad is not None for p in objective.parameters())
    names = [name for name in one if not name.endswith("seconds")]
    assert [one[name] for name in names] == [other[name] for name in names], (one, other)
    if world.is_main:
        print(json.dumps({name: one[name] for name in names}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resenc", "vit", "mednext"])
def test_they_are_the_same_numbers_at_any_stage_and_world_size(ranks, tiny_shards, labelled_shards, tmp_path, backbone):
    given = config(tiny_shards, labelled_shards, tmp_path, backbone).model_dump_json()
    cases = {1: [(0, "fp32", False)], 2: [(3, "fp32", True)]}
    if backbone == "resenc":
        cases[2] += [(0, "bf16", True), (3, "bf16", False), (1, "fp32", True), (2, "fp32", False)]
    found = {
        (size, *case): json.loads(line)
        for size, of_size in cases.items()
        for case, line in zip(
            of_size, ranks(MEASURE, size, CONFIG=given, CASES=json.dumps(of_size)).splitlines(), strict=True
        )
    }
    one = found[1, 0, "fp32", False]
    names = ["knn/balanced_accuracy", "knn/auroc", "linear/balanced_accuracy", "linear/auroc", "segmentation/dice"]
    assert list(one) == [f"probe/{name}" for name in [*names, "slices/dice"]]
    for (_, _, precision, _), other in found.items():
        if precision == "fp32":
            assert other == pytest.approx(one, abs=0.01)
        else:
            assert other == pytest.approx(found[2, 0, "bf16", True], abs=0.01)
            assert other == pytest.approx(one, abs=0.25)
    if backbone != "vit":  # intensity is in the finest level of the others, whatever their weights
        assert one["probe/segmentation/dice"] > 0.6
    assert one["probe/linear/auroc"] > 0.65  # of random weights


def finished(tmp_path: Path, name: str, given: dict) -> tuple[str, list[dict]]:
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(given))
    command = [warm.SCANFOUNDRY, "pretrain", str(tmp_path / f"{name}.yaml")]
    process = warm.run(command, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr
    return process.stderr, [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


MAE = {"name": "mae", "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2}
WITH_NOISE = BACKBONES["vit"] | {"patch_3d": [4, 8, 8], "patch_2d": [8, 8], "drop_path": 0.5}
RUN = """
import os
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.training.loop import run

world = join("cpu", 1)
run(PretrainConfig.model_validate_json(os.environ["CONFIG"]))
"""


@pytest.mark.slow
def test_they_change_no_bit_of_a_run_under_zero_3(ranks, tmp_path, tiny_shards, labelled_shards):
    given = {"engine": {"zero_stage": 3, "precision": "bf16"}, "backbone": WITH_NOISE, "objective": MAE}
    losses = []
    for name, probed in (("with", probes(labelled_shards)[:2]), ("without", [])):
        told = config(tiny_shards, labelled_shards, tmp_path / name, **given, probes=probed)
        ranks(RUN, 2, CONFIG=told.model_dump_json())
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "probe/knn/auroc" in line] == ([2, 4, 5] if probed else [])
        losses.append([line["loss"] for line in lines])
    assert losses[0] == losses[1]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == other


@pytest.mark.slow
@pytest.mark.timeout(900)  # four runs one after the other
def test_they_change_no_bit_of_a_run(tmp_path, tiny_shards, labelled_shards):
    """With random numbers drawn in the encoder (stochastic depth), and the run resumed after a measurement."""
    given = {"engine": {"precision": "bf16"}, "ema": {"momentum": 0.9}, "backbone": WITH_NOISE}
    given["objective"] = MAE
    with_, without = (content(tiny_shards, labelled_shards, tmp_path / name, **given) for name in ("with", "without"))
    with_["probes"][2]["every"] = 3
    with_["probes"][2]["data"]["crop"] = [16, 24, 24]
    with_["probes"][3]["data"]["crop"] = [24, 24]
    without["probes"] = []
    said, lines = finished(tmp_path, "with", with_)
    _, others = finished(tmp_path, "without", without)
    assert [line["loss"] for line in lines] == [line["loss"] for line in others]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == other
    assert [line["step"] for line in lines if "probe/knn/auroc" in line] == [2, 4, 5]
    assert [line["step"] for line in lines if "probe/segmentation/dice" in line] == [3, 5]
    assert all(line["probe/linear/seconds"] > 0 for line in lines if "probe/linear/auroc" in line)
    assert said.count("probe 'knn': trains on") == 1

    more, more_lines = finished(tmp_path, "with", with_ | {"steps": 7})
    rest, rest_lines = finished(tmp_path, "without", without | {"steps": 7, "probes": with_["probes"][:1]})
    assert "continuing from step 5" in more
    assert "continuing from step 5" in rest
    assert [line["loss"] for line in more_lines] == [line["loss"] for line in rest_lines]
    assert more_lines[-1]["probe/knn/auroc"] == rest_lines[-1]["probe/knn/auroc"]


def opened(shards, tiny, tmp_path, site=NOBODY, **changes) -> Probes:
    given = config(tiny, shards, tmp_path, **changes)
    return Probes(given, build(given.backbone), ALONE, site)


def test_test_patients_that_are_pre_trained_on_are_told_of_once(tiny_shards, labelled_shards, tmp_path):
    given = content(tiny_shards, labelled_shards, tmp_path)
    given["data"] = {
        "sources": [{"name": "own", "path": str(labelled_shards["images"])}], "crop_2d": [16, 16], "batch_2d": 4,
    }  # fmt: skip
    for holdout, seen in ((0.0, True), (0.4, False)):
        given["data"]["holdout"] = holdout
        checked = check(PretrainConfig, given, "test")
        plan = SamplingPlan(checked.data, 0)
        site = Site(frozenset(plan.patients()), frozenset(plan.sites.values()))
        said = Probes(checked, build(checked.backbone), ALONE, site).messages
        assert [("knn" in line and "pre-trained on" in line) for line in said].count(True) == seen
        assert sum(line.startswith("probe 'knn': trains on") for line in said) == 1
        assert not any("another key" in line for line in said)
    said = opened(labelled_shards, tiny_shards, tmp_path, Site(frozenset(), frozenset({"0" * 32}))).messages
    assert sum("another key" in line for line in said) == 4


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (1, {"target": None}, "probe 'linear': .*several classes"),
        (1, {"data": {"path": "no/such/folder"}}, "probe 'linear': no/such/folder is not a complete data set"),
        (2, {"data": {"crop": [1, 1, 1]}}, "probe 'segmentation': a scan of .* is too small for STU-Net"),
        (3, {"data": {"scans": 1}}, "probe 'slices': .*of one patient"),
    ],
)
def test_mistakes_are_said_at_the_start(tiny_shards, labelled_shards, tmp_path, number, change, said):
    given = content(tiny_shards, labelled_shards, tmp_path)
    probe = given["probes"][number]
    for key, value in change.items():
        probe[key] = probe[key] | value if isinstance(value, dict) else value
    checked = check(PretrainConfig, given, "test")
    with pytest.raises(UserError, match=said):
        Probes(checked, build(checked.backbone), ALONE, NOBODY)


def test_two_probes_of_one_name_and_unknown_keys_are_refused(tiny_shards, labelled_shards, tmp_path):
    given = content(tiny_shards, labelled_shards, tmp_path)
    given["probes"][3].pop("name")
    with pytest.raises(UserError, match="same name"):
        check(PretrainConfig, given, "test")
    given["probes"][3] = given["probes"][2] | {"name": "other", "neighbours": 3}
    with pytest.raises(UserError, match="neighbours"):
        check(PretrainConfig, given, "test")


def test_a_scan_that_cannot_be_read_ends_the_start_on_every_rank(ranks, tiny_shards, labelled_shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(labelled_shards["volumes"], broken)
    (shard,) = broken.glob("*.tar")
    content_of = bytearray(shard.read_bytes())
    index = json.loads((broken / f"{shard.stem}.idx.json").read_text())
    content_of[index["samples"][0]["offset"] + 40] ^= 255
    shard.write_bytes(content_of)
    given = config(tiny_shards, labelled_shards | {"volumes": broken}, tmp_path / "run").model_dump_json()
    code = """
    import os
    from scanfoundry.backbones.registry import build
    from scanfoundry.configs.errors import UserError
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.distributed.world import join
    from scanfoundry.pretrain.probes.probe_setup import Site
    from scanfoundry.pretrain.probes.running import Probes
    world = join("cpu", 1)
    config = PretrainConfig.model_validate_json(os.environ["CONFIG"])
    try:
        Probes(config, build(config.backbone), world, Site(frozenset(), frozenset()))
    except UserError as error:
        assert "checksum" in str(error) and "probe 'segmentation'" in str(error), error
        print("said")
    else:
        raise AssertionError("not said")
    """
    assert ranks(textwrap.dedent(code), 2, CONFIG=given).strip() == "said"
