"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.configs.text import guarded, printable
from scanfoundry.datasets.shards.sizes import SHARD_MB
from scanfoundry.launch.cli.launch import launch_app

app = typer.Typer(
    name="scanfoundry",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train foundation models on unlabelled medical scans, adapt them to a few labelled cases.",
)
data_app = typer.Typer(no_args_is_help=True, help="Build and check shards.")
app.add_typer(data_app, name="data")
app.add_typer(launch_app, name="launch")
models_app = typer.Typer(no_args_is_help=True, help="Released models: a catalogue, installation, a look inside.")
app.add_typer(models_app, name="models")

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or the copy that newer releases of typer carry inside

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. steps=200.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _options(debug: Debug = False) -> None:
    _State.debug = debug


class _State:
    debug = False


@data_app.command("build")
def data_build(
    inputs: Annotated[
        list[Path], typer.Argument(help="Folders or files: DICOM, NIfTI, NRRD, MHA, PNG, JPEG, TIFF, NPY, NPZ.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    modality: Annotated[
        str, typer.Option(help="ct, mr, us, xr ... of scans whose file does not say: decides the intensity scaling.")
    ] = "unknown",
    labels: Annotated[
        list[Path] | None, typer.Option(help="CSV, COCO .json, VOC folder, dataset.json. Repeatable.")
    ] = None,
    label_columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns of the CSV to store beside class, label, target, diagnosis, category. Repeatable."),
    ] = None,
    allow_identifying: Annotated[
        bool, typer.Option("--allow-identifying", help="Store a column asked for even if it may tell a person.")
    ] = False,
    masks: Annotated[
        list[Path] | None, typer.Option(help="Folder of masks named like the scans, or a pattern. Repeatable.")
    ] = None,
    boxes_from_masks: Annotated[bool, typer.Option(help="A box around each connected part of a mask.")] = False,
    frames: Annotated[bool, typer.Option(help="Folders of numbered images are videos.")] = False,
    patient_regex: Annotated[
        str | None, typer.Option(help="Pattern over the relative path; its first group is the patient.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="The site's key for hashed identities.")] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Source megabytes per shard.")] = SHARD_MB,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; the default is one per core.")] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable scans that is too many.")] = 0.10,
    codec: Annotated[str, typer.Option(help="zstd (small) or lz4hc (fast).")] = "zstd",
) -> None:
    """Turn folders of scans into de-identified shards; continues a killed build."""
    from scanfoundry.launch.cli.data import build_command

    build_command(
        inputs, out, modality=modality, labels=labels, label_columns=label_columns,
        allow_identifying=allow_identifying, masks=masks, boxes_from_masks=boxes_from_masks, frames=frames,
        patient_regex=patient_regex, key_file=key_file, shard_mb=shard_mb, workers=workers, max_bad=max_bad,
        codec=codec,
    )  # fmt: skip


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    contact_sheet: Annotated[Path | None, typer.Option(help="Where the PNG goes.")] = None,
) -> None:
    """Verify every checksum, count what is there, draw a contact sheet."""
    from scanfoundry.launch.cli.data import check_command

    check_command(folder, contact_sheet)


@models_app.command("list")
def models_list(family: Annotated[str | None, typer.Option(help="stunet, mae, openmind.")] = None) -> None:
    """The models that can be installed by name: size, licence, whether they are installed."""
    from scanfoundry.launch.cli.models import list_command

    list_command(family)


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="A name of 'models list'.")],
    out: Annotated[Path | None, typer.Option(help="Folder instead of the models folder.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="File or folder that has the download already.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Expect this sum instead of the catalogue's.")] = None,
    in_channels: Annotated[int | None, typer.Option(min=1, help="Input channels; the default is the entry's.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte that are waited for.")] = 60.0,
) -> None:
    """Download, verify and convert a released model once; the same command goes on where it was cut."""
    from scanfoundry.launch.cli.models import get_command
    from scanfoundry.launch.zoo.get import Patience, Wish

    get_command(name, Wish(out, source, sha256, in_channels, Patience(timeout)))


@models_app.command("inspect")
def models_inspect(path: Annotated[Path, typer.Argument(help="Any weight file, or a run or release folder.")]) -> None:
    """What is inside a file, without running anything in it; a file with code in it is refused."""
    from scanfoundry.launch.cli.models import inspect_command

    inspect_command(path)


@models_app.command("export")
def models_export(
    run: Annotated[Path, typer.Argument(help="Run folder of a pre-training or a fine-tuning.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    to: Annotated[
        Literal["release", "onnx", "monai-bundle"], typer.Option(help="onnx and monai-bundle: of a fine-tuned model.")
    ] = "release",
    check: Annotated[Path | None, typer.Option(help="onnx: a scan to compare with torch on, beside noise.")] = None,
    push: Annotated[str | None, typer.Option(help="USER/NAME on the Hugging Face hub (HF_ENDPOINT).")] = None,
    private: Annotated[bool, typer.Option("--private", help="As a private repository.")] = False,
    licence: Annotated[str | None, typer.Option(help="apache-2.0, cc-by-4.0 ...; the default is the run's.")] = None,
    intended_use: Annotated[str, typer.Option(help="For the model card.")] = "",
    citation: Annotated[str | None, typer.Option(help="The default is the run's.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="JSON of names and numbers for the card.")] = None,
    without_patients: Annotated[bool, typer.Option("--without-patients", help="Leave the hashes out.")] = False,
) -> None:
    """Write a release folder with a model card, and push it; or ONNX, or a MONAI bundle, for others' software."""
    from scanfoundry.launch.cli.models import export_command

    export_command(
        run, out, to=to, check=check, push=push, private=private, licence=licence, intended_use=intended_use,
        citation=citation, metrics=metrics, without_patients=without_patients,
    )  # fmt: skip


@app.command()
def pretrain(
    config: Annotated[str, typer.Argument(help="A YAML file or a recipe's name.")], words: Words = None
) -> None:
    """Pre-train without labels; the same command continues a stopped run."""
    from scanfoundry.configs.loading import load
    from scanfoundry.pretrain import run
    from scanfoundry.pretrain.config.run import PretrainConfig

    result = run(load(PretrainConfig, config, "pretrain", words))
    _leave_at_once(0 if result.complete else 128 + (result.signal or 0))


@app.command()
def finetune(
    config: Annotated[str, typer.Argument(help="A YAML file or a recipe's name.")], words: Words = None
) -> None:
    """Adapt a checkpoint to labelled cases, few-shot, beside training from scratch; writes report.html."""
    from scanfoundry.configs.loading import load
    from scanfoundry.finetune import run
    from scanfoundry.finetune.config.study import FinetuneConfig

    with _says_why_it_stopped():
        result = run(load(FinetuneConfig, config, "finetune", words))
    print(f"report: {result.report}")


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="Run folder or model.safetensors of a fine-tuned model.")],
    input: Annotated[
        list[Path], typer.Option(help="Scan, DICOM series, or folder of any of them; may be given again.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the predictions; nothing in it is written over.")],
    format: Annotated[
        str, typer.Option(help="Of label maps. auto: as the input, DICOM-SEG for DICOM; nifti; dicom-seg.")
    ] = "auto",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Of every class, beside the labels.")] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="A map from 0 (sure) to 1.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Also what is unlike the training scans: an MR for a model of CT ...")
    ] = False,
) -> None:
    """Apply a fine-tuned model; what it finds returns in each input's own geometry.

    The same command goes on where it was stopped. Exit code 3: some inputs could not be predicted, see the table.
    """
    from scanfoundry.finetune.predict import predict as run_predict

    written = run_predict(model, input, out, device, format, probabilities, uncertainty, force=force)
    print(f"{len(written)} files in {out}")


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="A real data set (imagesTr + labelsTr); default: made up.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where everything goes; default: demo or demo-NAME.")] = None,
    modality: Annotated[str, typer.Option(help="Of the real data set: ct, mr ...")] = "unknown",
) -> None:
    """The whole way on this machine: scans, shards, pre-training, few-shot fine-tuning, report."""
    from scanfoundry.launch.demo.demo import run_demo

    with _says_why_it_stopped():
        report = run_demo(data, out or Path(f"demo-{data.resolve().name}" if data else "demo"), modality)
    print(f"report: {report}")
    _leave_at_once(0)


class _Left(Exception):
    """A command was asked to stop; typer, which ends silently on KeyboardInterrupt, lets this pass."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def _says_why_it_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise _Left(str(stopped) or "interrupted", 128 + getattr(stopped, "signal", signal.SIGINT)) from stopped


def _leave_at_once(code: int) -> None:
    """End without the interpreter's own shutdown, in which gloo's threads sometimes abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@guarded()
def main(arguments: list[str] | None = None) -> Any:
    """The entry point: a user's mistake is one line on stderr and exit code 2."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # children started in our root must not find our folder `datasets`
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UserErrors as errors:
        _fail(str(errors), 2, several=True)
    except UserError as error:
        _fail(str(error), getattr(error, "exit_code", 2))
    except UsageError as error:
        _fail(error.format_message(), 2)
    except _Left as left:
        _fail(str(left), left.code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except MemoryError:
        _fail("not enough memory for this; end other programs, or take a smaller input, batch or patch", 2)
    except RecursionError:
        _fail(
            "what was read is nested too deeply to be followed; give a file with fewer levels (--debug shows where)", 2
        )
    except ModuleNotFoundError as error:
        _fail(_missing(error), 2)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".strip(": "), 1)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1)


# Packages that only some commands need, and what installs them.
EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "s3fs": "s3", "fire": "dev"}


def _missing(error: ModuleNotFoundError) -> str:
    """The package that is not installed, and what installs it."""
    package = (error.name or str(error)).partition(".")[0]
    if package == "scanfoundry":
        return f"this installation of scanfoundry is incomplete ({error.name} is missing): install it again"
    what = f'"scanfoundry[{EXTRAS[package]}]"' if package in EXTRAS else package
    return f"this needs the package '{package}', which is not installed: pip install {what}"


def _fail(text: str, code: int, several: bool = False) -> None:
    if _State.debug:
        traceback.print_exc()  # here, where it is escaped as everything else
        _leave_at_once(1)
    said = printable(text, lines=True) if several else printable(" ".join(text.split()))
    print(f"scanfoundry: {said}", file=sys.stderr)
    _leave_at_once(code)
