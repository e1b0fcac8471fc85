"""Legacy Spatial Transcriptomics: a table of counts and a table of spots."""

from pathlib import Path

import numpy as np

from stexpr.data.cards import DataCard, SectionEntry
from stexpr.data.legacy_tables import on_lattice, read_counts, read_spots
from stexpr.data.readers.assembly import named_file, section_of_card, spots_of_card
from stexpr.data.section import Section
from stexpr.errors import CardError, DataError


def read_legacy_st(entry: SectionEntry, folder: Path, card: DataCard) -> Section:
    """Read legacy Spatial Transcriptomics: a table of counts (rows such as `10x13`) and a table of spots.

    Both may be gzipped. The spot table has columns `x`, `y` (array coordinates, rounded to join), `pixel_x`, `pixel_y` and
    maybe `selected` (1 = under tissue). Spots that are not selected, or in one table only, are left out and counted.
    """
    if entry.spots is None:
        raise CardError(f"section {entry.section} of {card.name} needs `spots`, the table of spot positions")
    barcodes, genes, counts = read_counts(folder / named_file(entry, "counts"))
    table = read_spots(folder / entry.spots)
    keys = [f"{round(x)}x{round(y)}" for x, y in zip(table["x"], table["y"], strict=True)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{folder / entry.spots} has array position {twice} more than once; each spot needs its own")
    selected = dict(zip(keys, table["selected"] == 1, strict=True))
    kept = [i for i, barcode in enumerate(barcodes) if selected.get(barcode, False)]
    measured = set(barcodes)
    left_out = {
        "not selected": sum(not selected.get(barcode, True) for barcode in barcodes),
        "in counts but not in spot file": sum(barcode not in selected for barcode in barcodes),
        "in spot file but not in counts": sum(chosen and key not in measured for key, chosen in selected.items()),
    }
    if not measured & set(keys):
        raise DataError(
            f"counts and spots of section {entry.section} do not join: {entry.counts} has spots such as {barcodes[0]!r}, "
            f"{entry.spots} positions such as {keys[0]!r}; rows of the counts must be spots named like 10x13 (genes in columns)"
        )
    place = {key: i for i, key in enumerate(keys)}
    rows = [place[barcodes[i]] for i in kept]
    centers = table[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64) * entry.pixel_scale
    # Positions found on the image scatter around the printed lattice, so the nearest spot is nearer than the pitch.
    lattice = on_lattice(table[["x", "y"]].to_numpy(dtype=np.float64), centers)
    spots = spots_of_card([barcodes[i] for i in kept], genes, counts[kept], centers[rows], folder, card)
    return section_of_card(entry, folder, card, spots, left_out, lattice)
