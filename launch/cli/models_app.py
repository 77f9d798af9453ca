"""The commands and options of `scanfoundry models`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

models_app = typer.Typer(no_args_is_help=True, help="Released models: a catalogue, installation, a look inside.")


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
    from scanfoundry.launch.zoo.get import InstallOptions, RetryPolicy

    get_command(name, InstallOptions(out, source, sha256, in_channels, RetryPolicy(timeout)))


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
