"""All parts, in the order of what is most worth knowing."""

from functools import partial

from gpus.cases import OBJECTIVES, STEPS, VARIANTS, Case
from gpus.parts import Part, Row, Setting

ENGINE, SHARDS = ("deepspeed",), ("deepspeed", "webdataset")
LABELLED = ("monai", "nibabel", "scipy", "sklearn", "peft", "matplotlib", "jinja2")


def environment(setting: Setting) -> Row:
    """See `environment.environment_row`."""
    from gpus.environment import environment_row

    return environment_row(setting)


def peaks(setting: Setting) -> Row:
    """What the device gives at most."""
    from gpus.measuring import copy_gb_per_s, matmul_tflops

    return {
        "bf16_tflops": round(matmul_tflops(setting.device), 3),
        "fp32_tflops": round(matmul_tflops(setting.device, False), 3),
        "copy_gb_per_s": round(copy_gb_per_s(setting.device), 1),
    }


def step(name: str, setting: Setting) -> Row:
    """See `step_rows.step_row`; modules of the product are imported in the worker alone, where a failure is a row."""
    from gpus.step_rows import step_row

    return step_row(name, setting)


def resume(setting: Setting) -> Row:
    """See `resuming.resume_row`."""
    from gpus.resuming import resume_row

    return resume_row(setting)


def beside(kind: str, name: str, setting: Setting) -> Row:
    """See `beside`."""
    from gpus import beside as module

    return (module.volumes_row if kind == "volumes" else module.images_row)(name, setting)


def kernels(name: str, setting: Setting) -> Row:
    """See `kernels.kernels_row`."""
    from gpus.kernels import kernels_row

    return kernels_row(name, setting)


def overhead(name: str, setting: Setting) -> Row:
    """See `step_rows.overhead`."""
    from gpus.step_rows import overhead as row_of

    return row_of(name, setting)


def finetune(setting: Setting) -> Row:
    """See `adapting.finetune_row`."""
    from gpus.adapting import finetune_row

    return finetune_row(setting)


def predict(setting: Setting) -> Row:
    """See `adapting.predict_row`."""
    from gpus.adapting import predict_row

    return predict_row(setting)


def _steps(cases: list[tuple[str, str, float, Case]], needs: tuple[str, ...] = ()) -> list[Part]:
    return [Part(name, what, seconds, partial(step, name), needs) for name, what, seconds, _ in cases]


def table() -> list[Part]:
    """The parts; what each may take is a guess until a GPU has run them."""
    return [
        Part("environment", "devices, versions, what is missing", 20, environment),
        Part("peaks", "matrix products of 8192^2, a copy of 1 GiB", 10, peaks),
        *_steps(STEPS),
        Part("resume", "SparK, STU-Net-B: SIGKILL behind a checkpoint, the same command again", 80, resume, SHARDS),
        Part("loader_volumes", "spark_stunet_b from shards", 40, partial(beside, "volumes", "spark_stunet_b"), SHARDS),
        Part("loader_images", "mae_vit_b_2d from shards", 30, partial(beside, "images", "mae_vit_b_2d"), SHARDS),
        Part("kernels", "spark_stunet_l in torch's profiler", 20, partial(kernels, "spark_stunet_l")),
        *_steps(OBJECTIVES),
        Part("finetune", "200 steps on two volumes, tested on two", 60, finetune, LABELLED),
        Part("predict", "two volumes by that model", 30, predict, LABELLED),
        Part("overhead", "mae_vit_b_2d by the engine and by a plain loop", 20,
             partial(overhead, "mae_vit_b_2d"), ENGINE),
        *_steps(VARIANTS, ENGINE),
    ]  # fmt: skip


def named(parts: list[Part], names: list[str]) -> list[Part]:
    """Those of the names that were given; all without any.

    Raises:
        SystemExit: there is no such part.
    """
    known = [part.name for part in parts]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no part {', '.join(unknown)}; there are {', '.join(known)}")
    return [part for part in parts if not names or part.name in names]
