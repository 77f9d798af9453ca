"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.configs.extras import check_installed, missing_module
from scanfoundry.configs.log import shown_log
from scanfoundry.configs.text import guarded, printable
from scanfoundry.launch.cli.data_app import data_app
from scanfoundry.launch.cli.launch_app import launch_app
from scanfoundry.launch.cli.models_app import models_app

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="scanfoundry",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # every command below inherits them
    help="Pre-train foundation models on unlabelled medical scans, adapt them to a few labelled cases.",
)
app.add_typer(data_app, name="data")
app.add_typer(launch_app, name="launch")
app.add_typer(models_app, name="models")

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or the copy that newer releases of typer carry inside

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. steps=200.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"scanfoundry {version('scanfoundry')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
]


@app.callback()
def _options(debug: Debug = False, version: Version = False) -> None:
    _State.debug = debug


class _State:
    debug = False


@app.command()
def pretrain(
    config: Annotated[str, typer.Argument(help="A YAML file or a recipe's name.")], words: Words = None
) -> None:
    """Pre-train without labels; the same command continues a stopped run."""
    check_installed("deepspeed")
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
    model: Annotated[
        Path, typer.Option(help="Run folder of a fine-tuning, or a released segmentation: name, folder or file.")
    ],
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
    """Apply a fine-tuned or released model; what it finds returns in each input's own geometry.

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
    check_installed("deepspeed", "webdataset")
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
@shown_log()
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
        _fail(missing_module(error.name or str(error)), 2)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".strip(": "), 1)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1)


def _fail(text: str, code: int, several: bool = False) -> None:
    if _State.debug:
        traceback.print_exc()  # here, where it is escaped as everything else
        _leave_at_once(1)
    logger.error("%s", printable(text, lines=True) if several else printable(" ".join(text.split())))
    _leave_at_once(code)
