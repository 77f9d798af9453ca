"""The extras of pyproject.toml: modules that only some commands need, and what installs them."""

from importlib.util import find_spec

from scanfoundry.configs.errors import UserError

# Each module and the extra that brings it; a test compares this with pyproject.toml.
EXTRAS = {
    **dict.fromkeys(("deepspeed", "webdataset", "wandb", "submitit"), "pretrain"),
    **dict.fromkeys(("pydicom", "dcm2niix", "pylibjpeg", "openjpeg", "rle", "jpeg_ls", "highdicom"), "dicom"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "s3fs": "s3",
    "tensorboard": "tensorboard",
    "fire": "dev",
}


def missing_module(name: str) -> str:
    """The sentence about a module that is not installed, with the command that installs it.

    Args:
        name: of the module as it is imported; of `package.module` the package counts.
    """
    package = name.partition(".")[0]
    if package == "scanfoundry":
        return f"this installation of scanfoundry is incomplete ({name} is missing): install it again"
    what = f'"scanfoundry[{EXTRAS[package]}]"' if package in EXTRAS else package
    return f"this needs the package '{package}', which is not installed: pip install {what}"


def check_installed(*modules: str) -> None:
    """Refuse a task before it begins where a module is missing that its last steps need.

    Raises:
        UserError: the first of `modules` that cannot be found, and what installs it.
    """
    for name in modules:
        if find_spec(name) is None:
            raise UserError(missing_module(name))
