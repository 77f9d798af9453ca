"""`scanfoundry launch`: a word of its own for submitting, with `status`, `logs` and `cancel` beside it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

SUBMIT = "submit"


class _SubmitsUnknownWords(TyperGroup):
    """A first word that is no subcommand is a configuration to submit."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [SUBMIT, *args]
        return super().parse_args(ctx, args)


launch_app = typer.Typer(
    cls=_SubmitsUnknownWords,
    no_args_is_help=True,
    help="Pre-train or fine-tune on SLURM, or as processes here: `scanfoundry launch CONFIG [OPTIONS] [KEY=VALUE]...`",
)
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder, or the folder of a sweep.")]


@launch_app.command(SUBMIT)
def submit(
    config: Annotated[
        str, typer.Argument(help="A YAML file or a recipe's name; the trials of a fine-tuning study are an array.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides; KEY=A,B,C makes a sweep, one run for each."),
    ] = None,
    cluster: Annotated[str, typer.Option(help="slurm or local.")] = "slurm",
    nodes: Annotated[int | None, typer.Option(min=1)] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Processes per node; one per GPU.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0)] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1)] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Memory per node.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of one GPU; --dry-run says what fits.")] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    constraint: Annotated[str | None, typer.Option(help="Features that the nodes must have.")] = None,
    time: Annotated[int | None, typer.Option(min=1, help="Minutes; the job requeues itself at the limit.")] = None,
    array_parallelism: Annotated[int | None, typer.Option(min=1, help="Runs of a sweep at the same time.")] = None,
    defaults: Annotated[
        str | None, typer.Option(help="Cluster defaults: a YAML file or a name in configs/cluster.")
    ] = None,
    wait: Annotated[bool | None, typer.Option(help="Wait for the end; the default is to wait only for local.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the job and its memory; submit nothing.")] = False,
    snapshot: Annotated[bool, typer.Option(help="Run a copy of the code as it is now, also when requeued.")] = True,
    check: Annotated[bool, typer.Option(help="Look at data, batch and free space before a job is queued.")] = True,
) -> None:
    """Submit a run, or with KEY=A,B,C a sweep. The word `submit` may be left out."""
    from scanfoundry.launch.cluster.launching import launch_command

    asked = {
        "nodes": nodes, "tasks_per_node": tasks_per_node, "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task, "memory_gb": memory_gb, "gpu_memory_gb": gpu_memory, "partition": partition,
        "account": account, "qos": qos, "constraint": constraint, "timeout_min": time,
        "array_parallelism": array_parallelism,
    }  # fmt: skip
    asked = {key: value for key, value in asked.items() if value is not None}
    raise typer.Exit(launch_command(config, words or [], cluster, asked, defaults, wait, dry_run, snapshot, check))


@launch_app.command("data-build")
def data_build(
    words: Annotated[
        list[str], typer.Argument(metavar="INPUTS...", help="Of `data build`; behind '--' its options too.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set, on a disk that all nodes see.")],
    parts: Annotated[int, typer.Option(min=1, help="Jobs of the array.")],
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Processes of a part.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Memory of a part.")] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    constraint: Annotated[str | None, typer.Option(help="Features that the nodes must have.")] = None,
    time: Annotated[int | None, typer.Option(min=1, help="Minutes; a part goes on after its limit.")] = None,
    array_parallelism: Annotated[int | None, typer.Option(min=1, help="Parts at the same time.")] = None,
    defaults: Annotated[
        str | None, typer.Option(help="Cluster defaults: a YAML file or a name in configs/cluster.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the scripts; submit nothing.")] = False,
) -> None:
    """Build shards on SLURM: an array of parts, and a job that merges them when all are done."""
    from scanfoundry.launch.cluster.data_build import BuildWords, data_build_command

    read = _options_of(words)
    asked = {
        "cpus_per_task": cpus_per_task, "memory_gb": memory_gb, "partition": partition, "account": account,
        "qos": qos, "constraint": constraint, "timeout_min": time, "array_parallelism": array_parallelism,
    }  # fmt: skip
    given = {key: value for key, value in asked.items() if value is not None}
    data_build_command(BuildWords(words, read["workers"], read["max_bad"]), out, parts, given, defaults, dry_run)


def _options_of(words: list[str]) -> dict[str, Any]:
    """The options of `data build` in the words: an error comes at once, and not in each of the jobs."""
    from scanfoundry.configs.errors import UserError
    from scanfoundry.launch.cli.data_app import data_app

    build: Any = typer.main.get_command(data_app)
    given: dict[str, Any] = build.commands["build"].make_context("data build", ["--out", "", *words]).params
    if given["part"] is not None or given["append"] or given["out"] != Path():
        raise UserError("--part, --append and --out are not for data build here: the jobs give them themselves")
    return given


@launch_app.command()
def status(
    run_dir: RunDir, all_jobs: Annotated[bool, typer.Option("--all", help="Also earlier submissions.")] = False
) -> None:
    """State, step, loss, requeues and newest checkpoint of a run or of each run of a sweep."""
    from scanfoundry.launch.cli.jobs import status_command

    status_command(run_dir, all_jobs)


@launch_app.command()
def logs(
    run_dir: RunDir,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    lines: Annotated[int, typer.Option(min=0, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """The log of one rank, requeues included."""
    from scanfoundry.launch.cli.jobs import logs_command

    logs_command(run_dir, rank, lines, follow)


@launch_app.command()
def cancel(
    run_dir: RunDir,
    grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds to save in; the default is the job's signal_delay_s.")
    ] = None,
) -> None:
    """End a job for good: a running one saves first, and no requeue brings it back."""
    from scanfoundry.launch.cli.jobs import cancel_command

    cancel_command(run_dir, grace)
