"""Operations of a step, counted once, and what share of a device's peak they are."""

import pytest
import torch

from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import ALONE, World
from scanfoundry.pretrain.logging import utilisation
from scanfoundry.pretrain.logging.device_peaks import PEAKS, peak_tflops
from scanfoundry.pretrain.logging.utilisation import Utilisation
from scanfoundry.pretrain.memory.flops import flops


def configured(backbone: dict, objective: dict, **others) -> PretrainConfig:
    data = {"sources": [{"name": "a", "path": "a"}], "crop_2d": [64, 64], "crop_3d": [16, 32, 32], "batch_2d": 8}
    return PretrainConfig.model_validate({
        "run_dir": "run", "steps": 100, "backbone": backbone, "objective": objective, "data": data,
    } | others)  # fmt: skip


VIT = {"name": "vit", "size": "Ti", "patch_2d": [16, 16], "patch_3d": [8, 8, 8]}
STUNET = {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3}


def dense_blocks(tokens: int, width: int, depth: int) -> int:
    """The operations of a transformer's blocks, forward: qkv, attention's two products, projection, MLP."""
    linear = 2 * tokens * width * width * (3 + 1 + 4 + 4)
    return depth * (linear + 2 * 2 * tokens * tokens * width)


def test_a_transformer_s_operations_are_those_of_the_formula(monkeypatch):
    from scanfoundry.backbones import vit

    monkeypatch.setitem(vit.WIDTH_DEPTH_HEADS, "Ti", (192, 2, 3))
    shallow = flops(configured(VIT, {"name": "mae", "mask_ratio": 0.75}), (1, 64, 64), 2)
    monkeypatch.setitem(vit.WIDTH_DEPTH_HEADS, "Ti", (192, 4, 3))
    deep = flops(configured(VIT, {"name": "mae", "mask_ratio": 0.75}), (1, 64, 64), 2)
    tokens = 4 + 1  # a quarter of 16 patches, and the class token
    assert deep - shallow == pytest.approx(3 * 2 * dense_blocks(tokens, 192, 2), rel=0.1)


def test_hidden_blocks_cost_the_sparse_engine_nothing_and_are_not_counted():
    spark = [{"name": "spark", "mask_ratio": share, "block_3d": [4, 4, 4]} for share in (0.25, 0.75)]
    much, little = (flops(configured(STUNET, objective), (16, 32, 32), 1) for objective in spark)
    assert little < 0.75 * much


def test_activation_checkpointing_adds_no_model_flops():
    plain = configured(VIT, {"name": "mae"})
    again = configured(VIT, {"name": "mae"}, engine={"activation_checkpointing": True})
    assert flops(plain, (1, 64, 64), 2) == flops(again, (1, 64, 64), 2)


def test_counting_leaves_random_numbers_and_other_ranks_alone(ranks):
    said = ranks(
        """
        import torch
        from scanfoundry.pretrain.distributed.world import join
        from scanfoundry.pretrain.memory.flops import flops
        from scanfoundry.pretrain.config.run import PretrainConfig
        world = join("cpu", 1)
        if world.is_main:  # a collective would wait for the other rank for ever
            before = torch.get_rng_state()
            config = PretrainConfig.model_validate({
                "run_dir": "run", "steps": 100, "backbone": {"name": "vit", "size": "Ti"},
                "objective": {"name": "contrastive", "projector_hidden": 16},
                "data": {"sources": [{"name": "a", "path": "a"}], "crop_2d": [32, 32], "positives": "crops"}})
            print(flops(config, (1, 32, 32), 2) > 0, torch.equal(before, torch.get_rng_state()))
        """,
        2,
    )
    assert said.split() == ["True", "True"]


def test_mfu_is_the_share_of_the_peak_and_absent_where_that_is_unknown(monkeypatch):
    counted = []
    monkeypatch.setattr(utilisation, "flops", lambda config, crop, samples: counted.append(samples) or 10**12)
    kinds = [type("Kind", (), {"crop": (1, 64, 64), "batch": 8})]
    config = configured(VIT, {"name": "mae"}, engine={"accumulation": 2}, peak_tflops=8)
    of = Utilisation(config, World(0, 2, 0, 2, torch.device("cpu")), kinds)
    assert of.of_step((1, 64, 64), 0.5) == {"tflops": 4.0, "mfu": 0.5}
    assert of.of_step((1, 64, 64), 1.0) == {"tflops": 2.0, "mfu": 0.25}
    assert counted == [2]  # once for the kind of step: 8 crops for 2 ranks and 2 micro-batches
    unknown = config.model_copy(update={"peak_tflops": None})
    assert Utilisation(unknown, ALONE, kinds).of_step((1, 64, 64), 0.5) == {}


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "peak"),
    [
        ("NVIDIA H200", "bf16", False, 989.4),
        ("NVIDIA H100 80GB HBM3", "fp32", True, 494.7),
        ("NVIDIA H100 PCIe", "bf16", False, 756),
        ("NVIDIA A100-SXM4-80GB", "fp32", False, 19.5),
        ("NVIDIA A10G", "bf16", False, 70),
        ("NVIDIA L40S", "bf16", True, 362),
        ("Tesla V100-SXM2-16GB", "bf16", False, None),
        ("Tesla V100-SXM2-16GB", "fp32", True, 15.7),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", False, None),
        ("NVIDIA GeForce GTX 1080", "fp32", False, None),
    ],
)
def test_peaks_are_those_of_the_data_sheet_or_none(device: str, precision: str, tf32: bool, peak: float | None):
    assert peak_tflops(device, precision, tf32) == peak


def test_no_device_computes_less_in_lower_precision():
    for name, peaks in PEAKS.items():
        known = [peak for peak in peaks if peak is not None]
        assert known == sorted(known, reverse=True), name
