"""`stexpr sweep`: run a grid of studies, and see, stop or retry what runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stexpr.cli import terminal


class _FileFirst(TyperGroup):
    """Lets `stexpr sweep FILE` stand beside `stexpr sweep status`: what is no verb is a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_for_help = args and args[0] in ctx.help_option_names
        verb = args and args[0] in self.commands
        return super().parse_args(ctx, args if not args or asks_for_help or verb else ["run", *args])


app = typer.Typer(
    cls=_FileFirst,
    help="Run a grid of studies (stexpr sweep FILE), on this machine or a cluster; see, stop or retry it.",
    no_args_is_help=True,
)

Sweep = Annotated[str, typer.Argument(help="A sweep: a YAML file, or the name of one that comes with stexpr.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value over the base study, such as training.epochs=2")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
EngineOption = Annotated[str, typer.Option(help="local, ray, slurm, or wandb, which prints the file for `wandb sweep`.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time; by default one per GPU, or as cores and memory allow.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each run; the last digits of a result depend on it.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="With ray and slurm: GPUs of each run, also a part of one.")]
Address = Annotated[str | None, typer.Option(help="With ray: the cluster to join; without it Ray starts here.")]
Slurm = Annotated[list[str] | None, typer.Option(help="With slurm: a parameter of submitit, such as slurm_partition=gpu.")]
Yes = Annotated[bool, typer.Option("--yes", help="Yes, that many.")]


@app.command(hidden=True)
def run(
    sweep: Sweep,
    overrides: Overrides = None,
    *,
    runs: Runs = Path("runs"),
    engine: EngineOption = "local",
    workers: Workers = None,
    threads: Threads = None,
    gpus: Gpus = None,
    address: Address = None,
    slurm: Slurm = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs, and estimate their time.")] = False,
    yes: Yes = False,
) -> None:
    """Make all runs of a sweep that are missing."""
    options = {"workers": workers, "threads": threads, "gpus": gpus, "address": address, "slurm": slurm}
    if engine == "wandb":
        _print_wandb_sweep(sweep, overrides or [], runs)
    elif dry_run:
        _show_plan(sweep, overrides or [], runs, engine, options, many=yes)
    else:
        _run(sweep, overrides or [], runs, engine, options, many=yes, only_failed=False)


@app.command()
def retry(
    sweep: Sweep,
    overrides: Overrides = None,
    *,
    runs: Runs = Path("runs"),
    engine: EngineOption = "local",
    workers: Workers = None,
    threads: Threads = None,
    gpus: Gpus = None,
    address: Address = None,
    slurm: Slurm = None,
    yes: Yes = False,
) -> None:
    """Try the runs of a sweep that failed once more, and only those."""
    options = {"workers": workers, "threads": threads, "gpus": gpus, "address": address, "slurm": slurm}
    _run(sweep, overrides or [], runs, engine, options, many=yes, only_failed=True)


@app.command()
def status(
    names: Annotated[list[str] | None, typer.Argument(help="Names of sweeps; all of the folder if none is given.")] = None,
    *,
    runs: Runs = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show it anew every few seconds.")] = False,
) -> None:
    """Show how far the sweeps of a folder have come: runs by state, the best so far, the time left."""
    from stexpr.errors import ConfigError
    from stexpr.train.sweep.plan import sweeps_in
    from stexpr.train.sweep.states import sweep_status

    wanted = names or sweeps_in(runs)
    if not wanted:
        raise ConfigError(f"no sweep was started in {runs}; start one with stexpr sweep FILE --runs {runs}")

    def look() -> Sequence[Any]:
        return [sweep_status(runs, name) for name in wanted]

    if watch:
        terminal.watch_sweeps(look)
    else:
        terminal.show_sweeps(look())


@app.command()
def stop(
    names: Annotated[list[str] | None, typer.Argument(help="Names of sweeps; all of the folder if none is given.")] = None,
    *,
    runs: Runs = Path("runs"),
) -> None:
    """Ask running sweeps to save and end, on whatever host they run; the same `stexpr sweep FILE` goes on from there."""
    from stexpr.train.sweep.run import stop_sweep

    for name in stop_sweep(runs, names or []):
        terminal.say(f"{name}: asked to stop; what runs saves its state first")


def make_chosen_engine(name: str, options: dict[str, Any], logs: Path) -> Any:
    """Build the engine of a command line; raises as `make_engine`."""
    from stexpr.engines import EngineOptions, make_engine
    from stexpr.errors import ConfigError

    pairs = {}
    for one in options["slurm"] or []:
        key, equals, value = one.partition("=")
        if not equals:
            raise ConfigError(f"--slurm {one!r} is not of the form key=value, such as slurm_partition=gpu")
        pairs[key] = value
    return make_engine(name, EngineOptions(**{**options, "slurm": pairs}), logs)


def _run(
    sweep: str, overrides: list[str], runs: Path, engine: str, options: dict[str, Any], *, many: bool, only_failed: bool
) -> None:
    from stexpr.config.sweep import load_sweep
    from stexpr.train.sweep.plan import plan_sweep
    from stexpr.train.sweep.run import run_sweep

    plan = plan_sweep(load_sweep(sweep, overrides, many=many))
    for note in plan.notes:
        terminal.say(note)
    chosen = make_chosen_engine(engine, options, plan.state_folder(runs) / "logs")
    terminal.say(f"{plan.summary()}; {chosen.slots} at a time with {chosen.threads} threads each, engine {chosen.name}")
    with terminal.bar() as progress:
        result = run_sweep(plan, runs, chosen, only_failed=only_failed, progress=progress, report=terminal.say)
    terminal.say(result.in_words(plan.config.name, sweep, runs))
    if not result.is_complete:
        raise typer.Exit(1)
    if plan.wandb_project is not None and result.n_done:
        _log_board(runs, plan.wandb_project, plan.state_folder(runs))


def _log_board(runs: Path, project: str, folder: Path) -> None:
    from stexpr.errors import ProtocolError
    from stexpr.evaluate.leaderboard import build_leaderboard
    from stexpr.train.mirror_board import log_board

    try:
        terminal.say(log_board(build_leaderboard(runs), project, folder, runs=runs))
    except ProtocolError as err:  # the folder holds more than this sweep
        terminal.say(f"no leaderboard for Weights & Biases: {err}")


def _show_plan(sweep: str, overrides: list[str], runs: Path, engine: str, options: dict[str, Any], *, many: bool) -> None:
    from stexpr.config.sweep import load_sweep
    from stexpr.train.sweep.plan import plan_sweep
    from stexpr.train.sweep.probe import estimate_seconds
    from stexpr.train.sweep.run import missing_runs

    plan = plan_sweep(load_sweep(sweep, overrides, many=many))
    chosen = make_chosen_engine(engine, options, plan.state_folder(runs) / "logs")
    missing = {run.key for run in missing_runs(plan, runs)}
    trained = [run for run in plan.runs if run.is_network and run.key in missing]
    with terminal.bar() as progress:
        seconds = estimate_seconds(trained, threads=chosen.threads, progress=progress)
    terminal.show_plan(plan, missing, dict(zip((run.key for run in trained), seconds, strict=True)), chosen.slots)


def _print_wandb_sweep(sweep: str, overrides: list[str], runs: Path) -> None:
    from stexpr.config.sweep import load_sweep
    from stexpr.train.sweep.wandb_grid import wandb_sweep_file

    terminal.say(wandb_sweep_file(load_sweep(sweep, overrides, many=True), runs, overrides).rstrip())
