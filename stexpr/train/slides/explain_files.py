"""The files that explain one slide: maps, squares for QuPath, a table of its patches, and its highest and lowest patches."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stexpr.config.files import write_whole
from stexpr.data.images import SlideImage, open_image
from stexpr.evaluate.figures import save_figure
from stexpr.evaluate.slides.contact_sheet import Extreme, contact_sheet_figure, extremes
from stexpr.evaluate.slides.heat_map import PatchMap, heat_map_figure, in_words, patch_maps
from stexpr.evaluate.tissue_maps import Background
from stexpr.inference.explain import SlideExplanation, SlideReading
from stexpr.inference.explained_output import ExplainedOutput
from stexpr.inference.gene_credit import GeneCredit, credit_genes, has_genes, map_genes
from stexpr.inference.geojson import write_squares
from stexpr.inference.patch_places import PatchPlaces, patch_pixels, places_of

__all__ = ["ExplainedSlide", "file_name", "write_explanations", "write_figure", "write_table"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

THUMBNAIL_PX: Final = 1600
GENES_DRAWN: Final = 3
"""Genes of a slide that have a map: those with the largest credit."""


@dataclass(frozen=True)
class ExplainedSlide:
    """One number of a slide, explained.

    Attributes:
        explanation: Its patches.
        genes: Credit of its genes; None where the head reads none.
        top: Highest patches, with pixels; none where neither bag nor slide shows them.
        bottom: Lowest patches.
    """

    explanation: SlideExplanation
    genes: GeneCredit | None
    top: tuple[Extreme, ...]
    bottom: tuple[Extreme, ...]


def write_explanations(
    folder: Path, reading: SlideReading, outputs: Sequence[ExplainedOutput], image: Path | None = None
) -> list[ExplainedSlide]:
    """Explain numbers of one slide and write the files of it.

    `<slide>.csv` and `<slide>.geojson` hold all numbers; each number has `<slide>.<target>.png`, `.patches.png` where patches
    can be shown, and `.genes.png` where the head reads genes.

    Args:
        folder: Made if need be.
        reading: The slide.
        outputs: What is explained.
        image: Its image file.

    Raises:
        DataError: The bag or the image cannot be read, or the folder not be written.
    """
    slide = reading.bag.slide
    done: list[ExplainedSlide] = []
    with ExitStack() as stack:
        opened = None if image is None else stack.enter_context(open_image(image))
        places = places_of(reading.bag, opened)
        background = _background(opened, places)
        columns: dict[str, Array] = {}
        for output in outputs:
            explanation = reading.explain(output)
            name = f"{slide}.{file_name(output.name)}"
            draw = partial(heat_map_figure, places.corners, places.side, background=background, mpp=places.mpp)
            write_figure(folder / f"{name}.png", draw(patch_maps(explanation), in_words(explanation)))
            genes, shown = _genes(reading, output)
            if genes is not None:
                title = f"{in_words(explanation)}; {genes.method}"
                write_figure(folder / f"{name}.genes.png", draw(shown, title))
            top, bottom = (_shown(reading, explanation, index, opened) for index in extremes(_ranking(explanation)))
            done.append(ExplainedSlide(explanation, genes, top, bottom))
            if top:
                title = f"{in_words(explanation)}; by {explanation.ranked_by}"
                write_figure(folder / f"{name}.patches.png", contact_sheet_figure(top, bottom, title, output.unit))
            columns |= _columns(done[-1], shown)
    table = pd.DataFrame({"patch": np.arange(len(places.corners)), "x": places.corners[:, 0], "y": places.corners[:, 1]})
    leaders = {f"leading gene ({one.explanation.output.name})": _leaders(one.genes) for one in done if one.genes is not None}
    write_table(folder / f"{slide}.csv", table.assign(**columns, **leaders))
    write_squares(folder / f"{slide}.geojson", places.corners, places.side, columns)
    return done


def file_name(text: str) -> str:
    """Return a name for files: letters, digits, dots, dashes and equal signs stay, all else becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", text).strip(".") or "_"


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_whole(path, partial(save_figure, figure))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))


def _background(image: SlideImage | None, places: PatchPlaces) -> Background | None:
    if image is None or places.unit == "um":
        return None
    return Background(image.thumbnail(THUMBNAIL_PX), float(image.width), float(image.height))


def _genes(reading: SlideReading, output: ExplainedOutput) -> tuple[GeneCredit | None, list[PatchMap]]:
    if not has_genes(reading):
        return None, []
    genes = credit_genes(reading, output)
    first = [genes.genes[i] for i in np.argsort(-genes.absolute, kind="stable")[:GENES_DRAWN]]
    values = map_genes(reading, output, first)
    return genes, [PatchMap(f"credit of {gene}", values[:, i], output.unit) for i, gene in enumerate(first)]


def _ranking(explanation: SlideExplanation) -> Array:
    return explanation.measures[explanation.ranked_by]


def _shown(
    reading: SlideReading, explanation: SlideExplanation, index: Int64[Array, "M"], image: SlideImage | None
) -> tuple[Extreme, ...]:
    if not len(index):
        return ()
    pixels = patch_pixels(reading.bag, index, image)
    values = _ranking(explanation)
    if pixels is None:
        return ()
    pairs = zip(index.tolist(), pixels, strict=True)
    return tuple(Extreme(explanation.slide, patch, float(values[patch]), picture) for patch, picture in pairs)


def _columns(done: ExplainedSlide, shown: Sequence[PatchMap]) -> dict[str, Array]:
    """Return the measurements of patches by name; attention is the same for all targets of a head."""
    name = done.explanation.output.name
    columns = {key if key == "attention" else f"{key} ({name})": values for key, values in done.explanation.measures.items()}
    return columns | {f"{one.title} ({name})": one.values for one in shown}


def _leaders(genes: GeneCredit) -> list[str]:
    return [genes.genes[place] for place in genes.leader]
