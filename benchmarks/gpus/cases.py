"""The steps that are measured: recipes of `configs/pretrain/`, with the batch that one GPU of theirs has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanfoundry.pretrain.config.run import PretrainConfig


@dataclass(frozen=True)
class Case:
    """A recipe and what is typed beside it.

    Attributes:
        recipe: its name.
        words: typed beside it.
        small: typed after them, where all is to be tiny.
        channels_last: whether weights of convolutions lie channels last, which no key of the product asks for.
    """

    recipe: str
    words: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    channels_last: bool = field(default=False, kw_only=True)

    def config(self, small: bool, work: Path) -> "PretrainConfig":
        """The configuration of the run; a teacher is made in the folder `work`, where the words name one."""
        from gpus.data import teacher  # the process that keeps the time imports nothing of the product
        from scanfoundry.configs.loading import load
        from scanfoundry.pretrain.config.run import PretrainConfig

        words = [*self.words, *(self.small if small else ())]
        if any(TEACHER in word for word in words):
            words = [word.replace(TEACHER, str(teacher(work))) for word in words]
        return load(PretrainConfig, self.recipe, "pretrain", words)


TEACHER = "A_RELEASED_MODEL"
VOLUMES, IMAGES = ("data.crop_3d=[16,16,16]", "data.batch_3d=2"), ("data.crop_2d=[32,32]", "data.batch_2d=2")
STUNET = ("backbone.strides=[[2,2,2],[2,2,2],[1,1,1],[1,1,1],[1,1,1]]", "backbone.size=S")
RESENC = ("backbone={name: resenc, features: [8,16], blocks: [1,1], strides: [[2,2,2]]}",)
VIT = ("backbone={name: vit, size: Ti, patch_2d: [8,8], patch_3d: [8,8,8]}",)
BLOCKS = ("objective.block_3d=[8,8,8]",)
SHALLOW = ("objective.decoder_dim=32", "objective.decoder_depth=1", "objective.decoder_heads=2")
PROJECTOR = ("objective.projector_hidden=16", "objective.projector_dim=8")
NARROW = ("objective.decoder_width=64",)  # the decoder of SparK
SPARK_SMALL, MAE_SMALL = (*VOLUMES, *STUNET, *BLOCKS, *NARROW), (*VOLUMES, *RESENC, *BLOCKS)
MIXED_MAE = (
    "objective={name: mae, mask_ratio: 0.75, target_eps: 1.0e-4}", "data.crop_2d=null", "data.positives=views",
    "data.augment={}", "data.batch_3d=32",
)  # fmt: skip
SPARK = ("engine.accumulation=1", "data.batch_3d=4")  # of each of eight GPUs, as all below
MAE_IMAGES = ("engine.accumulation=1", "data.batch_2d=256")
PAIRS = "data.batch_2d=128"
TEACHES = f"objective={{name: distil, teacher: {TEACHER}}}"
TOKENS = "objective={name: token_distillation}"

# What was asked for first: name, what is run, seconds, the case.
STEPS: list[tuple[str, str, float, Case]] = [
    ("spark_stunet_b", "SparK, STU-Net-B, 4 x 128^3", 40,
     Case("cluster_spark_volumes", ("backbone.size=B", *SPARK), SPARK_SMALL)),
    ("spark_stunet_l", "SparK, STU-Net-L, 4 x 128^3", 25, Case("cluster_spark_volumes", SPARK, SPARK_SMALL)),
    ("mae_resenc_l", "MAE, ResEnc-L, 2 x 160^3", 25, Case("mae_resenc_volumes", (), MAE_SMALL)),
    ("mae_vit_b_2d", "MAE, ViT-B, 256 x 224^2", 15,
     Case("cluster_mae_images", ("backbone.size=B", *MAE_IMAGES), (*IMAGES, *VIT, *SHALLOW))),
    ("mae_vit_l_2d", "MAE, ViT-L, 256 x 224^2", 15, Case("cluster_mae_images", MAE_IMAGES, (*IMAGES, *VIT, *SHALLOW))),
    ("mae_vit_b_3d", "MAE, ViT-B, 32 x 96 x 160 x 160", 15,
     Case("cluster_mixed", MIXED_MAE, (*VOLUMES, *VIT, *SHALLOW))),
    ("mae_vit_l_3d", "MAE, ViT-L, 32 x 96 x 160 x 160", 15,
     Case("cluster_mixed", ("backbone.size=L", *MIXED_MAE), (*VOLUMES, *VIT, *SHALLOW))),
]  # fmt: skip
# The other objectives, each by a recipe; with both kinds of batches where the recipe has both.
OBJECTIVES: list[tuple[str, str, float, Case]] = [
    ("contrast_moco", "MoCo v3, ViT-B, 128 pairs of 224^2", 15,
     Case("cluster_contrast_images", (PAIRS,), (*IMAGES, *VIT, *PROJECTOR))),
    ("mae_and_nt_xent", "MAE and NT-Xent, ViT-B, 128 pairs of 224^2, 32 of 96 x 160 x 160", 25,
     Case("cluster_mixed", (PAIRS, "data.batch_3d=32"), (*IMAGES, *VOLUMES, *VIT))),
    ("mae_primus", "MAE, Primus-M, 2 x 160^3", 15,
     Case("mae_primus_volumes", (), (*VOLUMES, "backbone={name: primus, size: S, grid: [2,2,2]}"))),
    ("contrast_dclw", "DCLW, STU-Net-S, pairs: 32 x 128^2, 16 x 32 x 48 x 48", 15,
     Case("contrastive_stunet_mixed", (), (*IMAGES, *VOLUMES, *PROJECTOR, *STUNET))),
    ("contrast_dcl", "DCL, STU-Net-S, 96 x 64^2 of 192^2, twice", 10,
     Case("dcl_stunet_images", (), (*IMAGES, *PROJECTOR, *STUNET, "data.augment.size_2d=[24,24]"))),
    ("barlow_twins", "Barlow Twins, STU-Net-S, 32 x 128^2, 16 x 32 x 48 x 48 and projections", 15,
     Case("barlow_twins_projection", (), (*IMAGES, *VOLUMES, *PROJECTOR, *STUNET))),
    ("dense_contrast", "dense contrast, STU-Net-S, 8 pairs of 64^3", 15,
     Case("dense_contrast_stunet_volumes", (), (*VOLUMES, *STUNET, "objective.voxels=16"))),
    ("distil", "distillation of STU-Net-S, 4 x 32 x 48 x 32", 10,
     Case("distil_stunet_volumes", (TEACHES,), (*VOLUMES, *STUNET))),
    ("token_distillation", "distillation of tokens, ViT-B, 256 x 224^2", 15,
     Case("cluster_mae_images", ("backbone.size=B", *MAE_IMAGES, TOKENS),
          (*IMAGES, *VIT, *SHALLOW))),
    ("spark_images", "SparK, STU-Net-S, 16 x 192^2", 10,
     Case("spark_stunet_images", (), (*IMAGES, *STUNET, *NARROW, "objective.block_2d=[8,8]"))),
]  # fmt: skip
# What the settings are worth; each is to be compared with a step above.
VARIANTS: list[tuple[str, str, float, Case]] = [
    ("spark_stunet_l_16", "spark_stunet_l with 16 crops", 25,
     Case("cluster_spark_volumes", ("engine.accumulation=1", "data.batch_3d=16"), SPARK_SMALL)),
    ("mae_resenc_l_last", "mae_resenc_l with channels last", 25,
     Case("mae_resenc_volumes", (), MAE_SMALL, channels_last=True)),
    ("mae_vit_b_2d_compiled", "mae_vit_b_2d with engine.compile", 50,
     Case("cluster_mae_images", ("backbone.size=B", "engine.compile=true", *MAE_IMAGES), (*IMAGES, *VIT, *SHALLOW))),
    ("mae_resenc_l_compiled", "mae_resenc_l with engine.compile", 70,
     Case("mae_resenc_volumes", ("engine.compile=true",), MAE_SMALL)),
    ("mae_resenc_l_recomputed", "mae_resenc_l with engine.activation_checkpointing", 25,
     Case("mae_resenc_volumes", ("engine.activation_checkpointing=true",), MAE_SMALL)),
]  # fmt: skip
CASES = {name: case for name, _, _, case in (*STEPS, *OBJECTIVES, *VARIANTS)}
