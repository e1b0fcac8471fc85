"""`stexpr slides`: heads on whole slides, from the slides on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stexpr.cli import terminal
from stexpr.cli.sweep import Address, Gpus, Slurm, Threads, make_chosen_engine

app = typer.Typer(help="Slides, their bags of patches, and heads on these.", no_args_is_help=True)


@app.callback()
def slides() -> None:
    """Slides, their bags of patches, and heads on these."""


@app.command()
def embed(
    source: Annotated[Path, typer.Argument(metavar="SLIDES", help="A folder of slides, or a slide table beside them.")],
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder of an exported model, or a published encoder's name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bags, one .h5 per slide.")] = Path("bags"),
    rois: Annotated[
        Path | None, typer.Option(help="Folder with <slide>.geojson: only patches whose center lies in a region.")
    ] = None,
    roi_class: Annotated[
        list[str] | None, typer.Option(help="Class of the regions that count, such as Tumor; several times; all if not given.")
    ] = None,
    expression: Annotated[bool, typer.Option("--expression", help="Also keep the expression the model predicts.")] = False,
    patches: Annotated[bool, typer.Option("--patches", help="Also keep the pixels of the patches.")] = False,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel of slides that do not say.")] = None,
    min_tissue: Annotated[float, typer.Option(help="Least share of tissue in a patch.")] = 0.5,
    stride_um: Annotated[
        float | None, typer.Option(help="Microns between patches; their side, or their smallest field's, if not given.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file with the weights of a published encoder.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch weights that are not in the cache.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try the slides in quarantine again.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    engine: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Slides at a time; by default one per GPU, or as cores allow.")
    ] = None,
    threads: Threads = None,
    gpus: Gpus = None,
    readers: Annotated[
        int | None,
        typer.Option(min=1, help="With ray: processes that only cut patches, for the workers, which then share each slide."),
    ] = None,
    address: Address = None,
    slurm: Slurm = None,
) -> None:
    """Turn slides into bags of patch features; what is done already is not done again."""
    from stexpr.inference.bags import EmbedSettings
    from stexpr.train.slides.embed import STATE, embed_slides
    from stexpr.train.slides.embed_job import EncoderSource

    settings = EmbedSettings(
        mpp=mpp,
        stride_um=stride_um,
        min_tissue=min_tissue,
        expression=expression,
        patches=patches,
        roi_classes=tuple(roi_class or ()),
    )
    options = {"workers": workers, "threads": threads, "gpus": gpus, "address": address, "slurm": slurm}
    chosen = _pipelined(engine, readers, options) if readers else make_chosen_engine(engine, options, output / STATE / "logs")
    encoder = EncoderSource(model, weights, download, device, batch_size)
    with terminal.bar() as progress:
        result = embed_slides(
            source, encoder, output, chosen, settings=settings, rois=rois, retry=retry, progress=progress, report=terminal.say
        )
    terminal.say(result.in_words(output))
    if not result.is_complete:
        raise typer.Exit(1)


def _pipelined(engine: str, readers: int, options: dict[str, Any]) -> Any:
    """Build the pipeline of readers and workers on Ray."""
    from stexpr.engines.ray.pipeline import RayPipeline
    from stexpr.errors import ConfigError
    from stexpr.train.slides.embed_pipeline import PipelinedEngine

    if engine != "ray":
        raise ConfigError(f"--readers goes with --engine ray, not {engine}")
    own = {key: options[key] for key in ("workers", "threads", "gpus", "address")}
    return PipelinedEngine(RayPipeline(readers=readers, **own))
