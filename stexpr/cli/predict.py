"""`stexpr predict`: virtual expression of a whole slide."""

from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import terminal


def predict(
    slide: Annotated[Path, typer.Argument(help="A whole-slide image: SVS, NDPI, MRXS, SCN, DICOM, OME-TIFF, TIFF …")],
    *,
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder of an exported model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .h5ad; a .geojson for QuPath and a .png overview go beside it.")
    ] = Path("prediction.h5ad"),
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel, where the slide does not say.")] = None,
    stride: Annotated[
        float | None, typer.Option(help="Microns between patches; their side, or their smallest field's, if not given.")
    ] = None,
    min_tissue: Annotated[float, typer.Option(help="Least share of tissue in a patch.")] = 0.5,
    coverage: Annotated[
        float | None, typer.Option(help="Keep the prediction intervals of this coverage, such as 0.9; all if not given.")
    ] = None,
    genes: Annotated[
        list[str] | None,
        typer.Option(
            "--genes", help="Gene of the GeoJSON and the overview; several times. If not given, the three that vary most."
        ),
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="Also keep the features of the patches.")] = False,
    abstain: Annotated[bool, typer.Option("--abstain", help="Write no prediction where a patch is foreign.")] = False,
    species: Annotated[str | None, typer.Option(help="Of the slide, to compare with the training data.")] = None,
    tissue: Annotated[str | None, typer.Option(help="Likewise, such as breast.")] = None,
    preservation: Annotated[str | None, typer.Option(help="Likewise, such as FFPE.")] = None,
    batch_size: Annotated[int, typer.Option(help="Patches at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
) -> None:
    """Predict the expression of every patch of tissue on a slide; memory does not grow with the slide."""
    from stexpr.evaluate.figures import save_figure
    from stexpr.evaluate.overview import overview_figure
    from stexpr.inference.geojson import write_geojson
    from stexpr.inference.slide import predict_slide
    from stexpr.inference.slide_file import check_genes, most_varied
    from stexpr.models.export import load_model

    loaded = load_model(model)
    check_genes(genes or (), loaded.genes)
    with terminal.bar() as progress, terminal.warnings_as_lines():
        done = predict_slide(
            slide,
            loaded,
            output,
            mpp=mpp,
            stride_um=stride,
            min_tissue=min_tissue,
            coverage=coverage,
            features=features,
            abstain=abstain,
            about={"species": species, "tissue": tissue, "preservation": preservation},
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    patches = done.read(genes or most_varied(output))
    beside = {kind: output.with_suffix(f".{kind}") for kind in ("geojson", "png")}
    write_geojson(patches, beside["geojson"])
    save_figure(overview_figure(patches, done.mask), beside["png"])
    terminal.say(f"{slide.name}: {len(loaded.genes):,} genes of {done.summary()}")
    terminal.say(f"written to {output}, {beside['geojson'].name} and {beside['png'].name}")
