"""A whole run through the command line: killed at random, stopped by a signal, continued bit for bit."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import warm
import yaml
from safetensors.torch import load_file

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.config.wandb import WandbConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, learning_rate
from scanfoundry.pretrain.training.initialize import start_encoder
from scanfoundry.pretrain.training.run_folder import check_same_run


def content(shards: dict[str, Path], run_dir: Path, objective: str = "spark", workers: int = 0) -> dict:
    backbones = {
        "spark": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3},
        "mae": {"name": "vit", "size": "Ti", "patch_2d": [8, 8], "patch_3d": [4, 8, 8]},
        "unet mae": {"name": "resenc", "features": [4, 8], "blocks": [1, 1], "strides": [[2, 2, 2]]},
    }
    blocks = {"spark": {"block_2d": [4, 4], "block_3d": [4, 4, 4], "decoder_width": 32}, "mae": {}}
    blocks["unet mae"] = {"mask_ratio": [0.4, 0.8], "hide": "token", "block_2d": [4, 4], "block_3d": [2, 4, 4]}
    moco = {"name": "contrastive", "loss": "moco_v3", "projector_hidden": 32, "projector_dim": 16}
    moco |= {"positions": {"axes": ["d"]}}
    blocks["sum"] = {"terms": [{"objective": {"name": "mae", "gradient_weight": 0.5}}, {"objective": moco}]}
    pairs = {"positives": "crops", "augment": {"preset": "strong"}} if objective == "sum" else {}
    return {
        "run_dir": str(run_dir), "seed": 3, "steps": 10, "checkpoint_every": 2, "threads": 1, "monitor_crops": 8,
        "backbone": backbones.get(objective, backbones["mae"]),
        "objective": {"name": objective.split()[-1], **blocks[objective]},
        "data": {
            "sources": [{"name": name, "path": str(path)} for name, path in shards.items()],
            "crop_2d": [16, 16], "crop_3d": [8, 16, 16], "batch_2d": 4, "batch_3d": 2, "workers": workers, **pairs,
        },
        "optimiser": {"lr": 1e-3, "warmup_steps": 2},
    }  # fmt: skip


def distilled(folder: Path) -> dict:
    """A sum of both distillations, with a teacher that is made in the folder."""
    if not (folder / "teacher").exists():
        config = ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(4, 4, 4))
        torch.manual_seed(1)
        save_release(folder / "teacher", {"encoder": build(config).state_dict()}, ReleaseInfo(backbone=config), [])
    tokens = {"name": "token_distillation", "top_blocks": 2, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    teacher = {"name": "distil", "teacher": str(folder / "teacher")}
    return {"name": "sum", "terms": [{"objective": teacher}, {"objective": tokens}]}


def start(path: Path, *words: str) -> warm.Popen:
    return warm.Popen([warm.SCANFOUNDRY, "pretrain", str(path), *words], stderr=subprocess.PIPE, text=True)


def wait_for_step(run_dir: Path, step: int, process: warm.Popen) -> None:
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate(timeout=30)[1]
        time.sleep(0.01)


def wait_for_words(words: str, process: warm.Popen) -> None:
    """Read what it says until `words` come; fails as soon as it has ended without them."""
    heard = ""
    while words not in heard:
        line = process.stderr.readline()
        assert line, heard
        heard += line


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["spark", "mae", "unet mae", "sum", "distil"])
def test_killed_and_stopped_it_ends_with_the_same_bytes(tmp_path, tiny_shards, shallow_vit, objective: str):
    paths = {}
    for name in ("straight", "killed"):
        paths[name] = tmp_path / f"{name}.yaml"
        given = content(tiny_shards, tmp_path / name, "mae" if objective == "distil" else objective, workers=1)
        if objective == "distil":
            given["objective"] = distilled(tmp_path)
        paths[name].write_text(yaml.safe_dump(given))
    straight = start(paths["straight"])
    killed = start(paths["killed"])
    wait_for_step(tmp_path / "killed", random.randint(3, 6), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    if objective == "spark":
        stopped = start(paths["killed"], "data.workers=0")
        wait_for_words("continuing", stopped)  # from here on the signal handlers are in place
        stopped.send_signal(signal.SIGTERM)
        _, errors = stopped.communicate(timeout=120)
        assert stopped.returncode == 128 + signal.SIGTERM, errors
        assert "stopped at step" in errors
    for process in (start(paths["killed"]), straight):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "killed"))
    assert one == other
    a, b = lines(tmp_path / "straight"), lines(tmp_path / "killed")
    assert [line["step"] for line in b] == list(range(1, 11))
    assert [line["loss"] for line in a] == [line["loss"] for line in b]
    assert {line["kind"] for line in a} == {"2d", "3d"}
    for line in a:
        modality = {"2d": "us", "3d": "mr"}[line["kind"]]
        own = {key for key in line if key.endswith(("/us", "/mr"))}
        name = {"sum": "mae/reconstruction", "distil": "distil/dense"}.get(objective, "reconstruction")
        assert f"{name}/{modality}" in own
        assert all(key.endswith(modality) for key in own)
        assert line[f"{name}/{modality}"] == pytest.approx(line[name])
        assert ("rankme_2d" in line) == ("rankme_3d" in line) == (line["step"] % 2 == 0)
    timing = ("samples_per_second", "data_wait", "memory_gib")
    assert [{k: v for k, v in line.items() if k not in timing} for line in a] == [
        {k: v for k, v in line.items() if k not in timing} for line in b
    ]
    assert list((tmp_path / "killed" / "pictures").glob("*.png"))


def finished(path: Path, given: dict, *words: str) -> str:
    path.write_text(yaml.safe_dump(given))
    process = start(path, *words)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def test_monitors_change_no_bit_of_the_weights(tmp_path, tiny_shards):
    for name, crops in (("with", 8), ("without", 0)):
        given = content(tiny_shards, tmp_path / name) | {"monitor_crops": crops, "monitor_every": 3, "steps": 7}
        finished(tmp_path / f"{name}.yaml", given)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == other
    assert [line["step"] for line in lines(tmp_path / "with") if "rankme_2d" in line] == [3, 6, 7]
    assert not any("rankme_2d" in line for line in lines(tmp_path / "without"))


def test_a_run_starts_from_released_weights_once_and_hands_on_whom_they_have_seen(tmp_path, tiny_shards):
    first = content({"mr": tiny_shards["mr"]}, tmp_path / "first") | {"steps": 3, "citation": "Nobody 2026"}
    first["data"].pop("crop_2d")
    assert "starting from random weights" in finished(tmp_path / "first.yaml", first)
    began = load_file(tmp_path / "first" / "model.safetensors")

    second = content({"us": tiny_shards["us"]}, tmp_path / "second") | {"steps": 3, "init": str(tmp_path / "first")}
    second["data"].pop("crop_3d")
    second["data"]["holdout"] = 0.5  # the scans of both sources are of the same patients
    second["optimiser"] = {"lr": 1e-12, "warmup_steps": 1}
    assert f"starting from {tmp_path / 'first'}" in finished(tmp_path / "second.yaml", second)
    ended = load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.allclose(began[key], ended[key], rtol=0, atol=1e-9) for key in began)
    seen = [set((tmp_path / name / "patients.txt").read_text().split()) for name in ("first", "second")]
    assert len(seen[0]) == 12
    assert seen[1] == seen[0]
    assert (
        "of the weights it started from: Nobody 2026"
        in json.loads((tmp_path / "second" / "model.json").read_text())["citation"]
    )

    shutil.move(tmp_path / "first", tmp_path / "gone")
    assert "continuing from step 3" in finished(tmp_path / "second.yaml", second | {"steps": 4})
    again = load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.allclose(ended[key], again[key], rtol=0, atol=1e-9) for key in began)
    assert set((tmp_path / "second" / "patients.txt").read_text().split()) == seen[1]


def test_weights_of_another_backbone_are_refused(tmp_path, tiny_shards):
    given = check(PretrainConfig, content(tiny_shards, tmp_path / "run"), "test")
    other = STUNetConfig(size="S", strides=((1, 2, 2),) * 2 + ((1, 1, 1),) * 3)
    for folder, backbone in (("strides", other), ("kind", ViTConfig(size="Ti"))):
        save_release(tmp_path / folder, {"encoder": build(backbone).state_dict()}, ReleaseInfo(backbone=backbone), [])
    with pytest.raises(UserError, match=r"backbone\.strides .*set backbone\.strides"):
        start_encoder(given.model_copy(update={"init": str(tmp_path / "strides")}), fresh=True)
    with pytest.raises(UserError, match=r"backbone\.name vit"):
        start_encoder(given.model_copy(update={"init": str(tmp_path / "kind")}), fresh=True)
    with pytest.raises(UserError, match="no file, run folder or installed model"):
        start_encoder(given.model_copy(update={"init": str(tmp_path / "absent")}), fresh=True)
    with pytest.raises(UserError, match=r"init\.json"):
        start_encoder(given.model_copy(update={"init": str(tmp_path / "strides")}), fresh=False)


def test_a_file_of_others_takes_the_runs_channels_and_patches(tmp_path, tiny_shards):
    content_of_run = content(tiny_shards, tmp_path / "run", "mae")
    given = check(PretrainConfig, content_of_run | {"init": str(tmp_path / "mae.pth")}, "test")
    theirs = build(ViTConfig(size="Ti", in_channels=3, patch_2d=(16, 16)))
    weights = {key: value for key, value in theirs.state_dict().items() if not key.startswith("patch_embed")}
    weights |= {"patch_embed.proj.weight": torch.randn(192, 3, 16, 16), "patch_embed.proj.bias": torch.randn(192)}
    weights |= {"pos_embed": torch.randn(1, 197, 192)}
    torch.save({"model": weights}, tmp_path / "mae.pth")
    start = start_encoder(given, fresh=True)
    encoder, origin = start.encoder, start.origin
    assert encoder.config == given.backbone
    assert torch.equal(encoder.state_dict()["blocks.3.attn.qkv.weight"], weights["blocks.3.attn.qkv.weight"])
    assert torch.equal(encoder.state_dict()["patch_embed_2d.bias"], weights["patch_embed.proj.bias"])
    assert "positions that were learned" in origin.summary
    assert "He et al. 2022" in origin.citation


def test_a_folder_with_another_run_is_refused(tmp_path, tiny_shards):
    first = content(tiny_shards, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(
        yaml.safe_dump(check(PretrainConfig, first, "").model_dump(mode="json"))
    )
    check_same_run(check(PretrainConfig, first, "test"))
    older = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    older["objective"].pop("decoder")  # of a version that did not have the key: its default is what was computed
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(older))
    check_same_run(check(PretrainConfig, first, "test"))
    with pytest.raises(UserError, match=r"objective\.mask_ratio="):
        check_same_run(check(PretrainConfig, first | {"objective": first["objective"] | {"mask_ratio": 0.5}}, "test"))
    moved = first["data"] | {"workers": 2, "sources": [s | {"path": "moved"} for s in first["data"]["sources"]]}
    check_same_run(check(PretrainConfig, first | {"steps": 20, "data": moved}, "test"))
    twice = [s | {"weight": 2.0} for s in first["data"]["sources"]]
    for key, value, said in (
        ("seed", 4, "seed=3, not 4"),
        ("optimiser", {"lr": 1e-2}, r"optimiser\.lr="),
        ("data", first["data"] | {"batch_2d": 8}, r"data\.batch_2d=\d+, not 8"),
        ("data", first["data"] | {"sources": twice}, r"data\.sources\.0\.weight=1\.0, not 2\.0"),
    ):
        with pytest.raises(UserError, match=said):
            check_same_run(check(PretrainConfig, first | {key: value, "steps": 100}, "test"))
    (tmp_path / "run" / "checkpoints" / "step-00000002").rmdir()
    check_same_run(check(PretrainConfig, first | {"seed": 4}, "test"))  # nothing would be lost


def test_what_computes_the_same_may_change_between_starts(tmp_path, tiny_shards):
    first = content(tiny_shards, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(
        yaml.safe_dump(check(PretrainConfig, first, "").model_dump(mode="json"))
    )
    data = first["data"] | {"cache": {"gb": 3, "timeout_s": 5}, "timeout_s": 7, "bad_sample_ceiling": 0.5}
    others = {"device": "cpu", "licence": "CC0", "citation": "we", "step_timeout_s": 9, "max_bad_steps": 3}
    engine = first.get("engine", {}) | {"accumulation": 2}
    check_same_run(check(PretrainConfig, first | others | {"data": data, "engine": engine}, "test"))


def test_accumulation_stays_where_the_loss_compares_samples(tmp_path, tiny_shards):
    contrast = {"name": "contrastive", "projector_hidden": 8}
    terms = [{"objective": {"name": "mae"}}, {"objective": contrast, "weight": 0.1}]
    for number, objective in enumerate((contrast, {"name": "sum", "terms": terms})):
        run = tmp_path / str(number)
        first = content(tiny_shards, run) | {"objective": objective}
        (run / "checkpoints" / "step-00000002").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(check(PretrainConfig, first, "").model_dump(mode="json")))
        other = first | {"engine": first.get("engine", {}) | {"accumulation": 2}}
        with pytest.raises(UserError, match=r"engine\.accumulation=1, not 2: its loss compares"):
            check_same_run(check(PretrainConfig, other, "test"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"crop_3d": [9, 16, 16]}}, "9, 16, 16"),
        ({"backbone": {"name": "vit", "size": "Ti"}}, "stunet"),
        ({"data": {"positives": "crops"}}, "looks at one"),
        ({"init": "no/such/model"}, "no/such/model"),
        ({"steps": 2}, "warmup_steps"),
        ({"data": {"sources": [{"name": "x", "path": "no/such/folder"}]}}, "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, tiny_shards, change: dict, said: str):
    given = content(tiny_shards, tmp_path / "run")
    for key, value in change.items():
        replace = isinstance(value, dict) and "name" not in value
        given[key] = given[key] | value if replace else value
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    process = warm.run([warm.SCANFOUNDRY, "pretrain", path], capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    message = [line for line in process.stderr.splitlines() if line.startswith("scanfoundry: ")]
    assert len(message) == 1
    assert said in message[0]
    assert "Traceback" not in process.stderr


def test_places_along_the_depth_of_images_are_refused(tmp_path, tiny_shards):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content({"us": tiny_shards["us"]}, tmp_path / "run", "sum")))
    process = warm.run([warm.SCANFOUNDRY, "pretrain", path], capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    assert "objective.positions.axes ['d'] is the place along the depth of volumes" in process.stderr


def test_a_bare_off_in_yaml_switches_wandb_off():
    assert WandbConfig.model_validate(yaml.safe_load("mode: off")).mode == "off"


def test_the_learning_rate_warms_up_and_falls_to_its_floor():
    config = OptimiserConfig(lr=1.0, min_lr=0.1, warmup_steps=4).filled("convolutional")
    rates = [learning_rate(step, 20, config) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[20] == pytest.approx(0.1)


def test_a_run_starts_from_a_smaller_kernel_and_from_images(tmp_path, tiny_shards):
    small, large = ({"name": "mednext", "size": "S", "kernel": kernel} for kernel in (3, 5))
    backbone = MedNeXtConfig.model_validate(small)
    info = ReleaseInfo(backbone=backbone, crop_2d=(32, 32))
    encoder = build(backbone)
    save_release(tmp_path / "flat", {"encoder": encoder.state_dict()}, info, [])
    given = content(tiny_shards, tmp_path / "run") | {"backbone": large, "init": str(tmp_path / "flat")}
    with pytest.raises(UserError, match=r"backbone.kernel 3, the run's is 5: set adapt.kernel=upkern"):
        start_encoder(check(PretrainConfig, given, "t"), fresh=True)
    both = check(PretrainConfig, given | {"adapt": {"kernel": "centre", "dimension": "centre"}}, "t")
    start = start_encoder(both, fresh=True)
    assert start.origin.summary.endswith(
        "; adapted: kernels of 3 enlarged to 5 by centre; kernels inflated from images to volumes by centre"
    )
    x = torch.randn(1, 1, 1, 48, 48)
    with torch.no_grad():
        for one, other in zip(start.encoder(x), encoder(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    plain = check(PretrainConfig, given | {"backbone": small}, "t")
    assert "was trained on images alone" in start_encoder(plain, fresh=True).origin.summary
    with pytest.raises(UserError, match="'adapt' is for the weights of 'init'"):
        check(PretrainConfig, content(tiny_shards, tmp_path / "run") | {"adapt": {"kernel": "upkern"}}, "t")


def test_a_run_of_before_a_key_was_there_goes_on(tmp_path, tiny_shards):
    given = check(PretrainConfig, content(tiny_shards, tmp_path / "run"), "t")
    written = given.model_dump(mode="json")
    del written["adapt"], written["data"]["intensity"]["zscore"]
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(written))
    check_same_run(given)
    with pytest.raises(UserError, match="seed="):
        check_same_run(given.model_copy(update={"seed": 7}))
