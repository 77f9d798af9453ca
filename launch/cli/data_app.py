"""The commands and options of `scanfoundry data`."""

from pathlib import Path
from typing import Annotated

import typer

from scanfoundry.datasets.shards.sizes import SHARD_MB

data_app = typer.Typer(no_args_is_help=True, help="Build and check shards.")


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
    keep_jpeg: Annotated[
        bool, typer.Option("--keep-jpeg", help="JPEG files stay JPEG, without metadata and bit for bit the same image.")
    ] = False,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="One part of N, here or on another machine; then 'data merge'.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add new scans to the data set in --out; its shards stay as they are.")
    ] = False,
) -> None:
    """Turn folders of scans into de-identified shards; continues a killed build."""
    from scanfoundry.launch.cli.data import build_command

    build_command(
        inputs, out, modality=modality, labels=labels, label_columns=label_columns,
        allow_identifying=allow_identifying, masks=masks, boxes_from_masks=boxes_from_masks, frames=frames,
        patient_regex=patient_regex, key_file=key_file, shard_mb=shard_mb, workers=workers, max_bad=max_bad,
        codec=codec, keep_jpeg=keep_jpeg, part=part, append=append,
    )  # fmt: skip


@data_app.command("merge")
def data_merge(
    folders: Annotated[list[Path], typer.Argument(help="The --out of all parts: one folder that they share, or each.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the data set, where the parts do not share one.")] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable scans that is too many.")] = 0.10,
) -> None:
    """Make one data set of the parts of a build: the same bytes as one build of everything."""
    from scanfoundry.launch.cli.data import merge_command

    merge_command(folders, out, max_bad)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    contact_sheet: Annotated[Path | None, typer.Option(help="Where the PNG goes.")] = None,
) -> None:
    """Verify every checksum, count what is there, draw a contact sheet."""
    from scanfoundry.launch.cli.data import check_command

    check_command(folder, contact_sheet)
