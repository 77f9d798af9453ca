"""A U-Net that has seen drawn scans alone starts a fine-tuning, decoder and all, and no patient of it was seen."""

import json

from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.run_study import run
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.training.loop import run as pretrain

STRIDES = [[2, 2, 2]] * 2


def test_encoder_and_decoder_are_used_and_no_key_is_asked_for(volumes, tmp_path):
    pretrain(
        PretrainConfig.model_validate(
            {
                "run_dir": tmp_path / "drawn",
                "steps": 1,
                "threads": 1,
                "device": "cpu",
                "backbone": {"name": "resenc", "features": [4, 8, 8], "blocks": [1, 1, 1], "strides": STRIDES},
                "objective": {"name": "dense_contrast", "voxels": 32, "projector_hidden": 16, "projector_dim": 8},
                "optimiser": {"warmup_steps": 0},
                "data": {
                    "sources": [{"name": "shapes", "synthetic": {}}],
                    "positives": "study",
                    "crop_3d": [16, 16, 16],
                    "batch_3d": 1,
                    "workers": 0,
                },
            }
        )
    )
    result = run(
        FinetuneConfig.model_validate(
            {
                "run_dir": tmp_path / "study",
                "checkpoint": tmp_path / "drawn",
                "transfer": ["encoder", "decoder"],
                "task": {"name": "segmentation", "classes": ["one", "two"]},
                "data": {"images": volumes / "images", "labels": volumes / "labels", "modality": "mr"},
                "plan": {"patch": [16, 16, 16], "spacing": [2.0, 1.5, 1.5], "batch": 1},
                "shots": [4],
                "compare_scratch": False,
                "schedule": {"steps": 1, "warmup_steps": 0},
                "device": "cpu",
            }
        )
    )
    content = json.loads(result.results.read_text())
    told = json.dumps(content["setup"]["transferred"])
    assert "decoder used" in told
    assert "encoder used" in told
    whole = json.dumps(content)
    assert "another site key" not in whole
    assert "of the pre-training: right if" not in whole
