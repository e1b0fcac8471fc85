"""Single patches of a prepared cohort, in random order, against raw reads: `python benchmarks/speed/patches.py [--quick]`.

One file of patches of 256 px as MOB has them, read as a study reads it, whole and as crops of 224 px. In each turn the file is
opened and every patch read once, as loader processes do at each epoch. The peers use h5py, or map the file into memory and copy
each patch. The file is in the page cache: what a disk would add is the same for all.
"""

import comparison  # isort: split

import tempfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from stexpr.data.patches import PatchReader

N, STORED_PX = 1200, 256
WINDOWS_PX = (256, 224)


def write(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:  # as stexpr.data.hest.write_patches lays them out
        images = file.create_dataset("img", shape=(n, STORED_PX, STORED_PX, 3), dtype=np.uint8)
        for i in range(n):
            images[i] = rng.integers(0, 256, images.shape[1:], dtype=np.uint8)


def rows(quick: bool) -> list[comparison.Row]:
    n, rounds = (20, 1) if quick else (N, 7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patches.h5"
        write(path, n)
        return [row for window in WINDOWS_PX for row in compare(path, n, window, rounds)]


def compare(path: Path, n: int, window: int, rounds: int) -> list[comparison.Row]:
    order = np.random.default_rng(1).permutation(n).tolist()
    start = (STORED_PX - window) // 2
    crop = slice(start, start + window)
    with h5py.File(path, "r") as file:
        mapped = partial(np.memmap, path, np.uint8, "r", file["img"].id.get_offset(), file["img"].shape)
    kept = mapped()

    def ours() -> None:
        reader = PatchReader(path, n, STORED_PX, window)
        for i in order:
            reader[i]
        reader.close()

    def hdf5() -> None:
        with h5py.File(path, "r") as file:
            images = file["img"]
            for i in order:
                images[i, crop, crop]

    def memmap(images: np.ndarray | None = None) -> None:
        images = mapped() if images is None else images
        for i in order:
            np.array(images[i, crop, crop])

    times = comparison.in_turns(rounds, ours, hdf5, memmap, lambda: memmap(kept))
    figures = [n / seconds for seconds in times]
    profile = comparison.profiled(ours)
    how = f"{n} patches of {STORED_PX} px, random order, each once from a file opened anew; medians of {rounds} turns; peer: "
    return [
        comparison.compared(
            f"patch_reading_{window}px_{name}",
            ours=figures[0],
            peer=peer,
            at_least=0.8,
            unit="patches/s",
            packages=("stexpr", "numpy", "h5py"),
            how=how + told,
            profile=profile,
        )
        for name, peer, told in (
            ("hdf5", figures[1], "h5py"),
            (
                "memmap",
                figures[2],
                f"a copy out of numpy.memmap; of one kept open through all turns {figures[3]:,.0f} patches/s",
            ),
        )
    ]


if __name__ == "__main__":
    comparison.main("patches", rows, __doc__)
