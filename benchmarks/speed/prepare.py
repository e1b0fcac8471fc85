"""The image path of `stexpr prepare` against Pillow's decode alone: `python benchmarks/speed/prepare.py [--quick]`.

Section C2 of HER2ST (../shared/data/her2st): a JPEG of 92 megapixels, 187 patches as its card asks for them (112 px at 3.44
um/px, reduced from 528 px), no stain normalization. Ours opens the file, cuts every patch, writes and hashes them, and lets go
of the image. `all_image_work` adds what else `prepare` does with the image: the tissue mask, the spot checks, the small picture
beside the counts and the check picture; it is measured once more with freed memory kept, as the command line does. `--quick`
takes a picture of noise.
"""

import comparison  # isort: split

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from stexpr.config import PrepareConfig
from stexpr.config.allocation import keep_freed_memory
from stexpr.data.cards import load_card
from stexpr.data.hest import write_patches, write_picture
from stexpr.data.images import open_image
from stexpr.data.qc import draw_qc, select_spots, windows_of
from stexpr.data.readers import read_section
from stexpr.data.section import Section
from stexpr.data.tissue import find_tissue, tissue_overview
from stexpr.types import SPATIAL

RAW = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "her2st"
THUMBNAIL_PX = 1000


def c2() -> tuple[Section, PrepareConfig]:
    card = load_card("her2st")
    assert card.prepare is not None
    entry = next(entry for entry in card.sections if entry.section == "C2")
    return read_section(entry, RAW, card), card.prepare.model_copy(update={"min_counts": 1})


def noise(folder: Path) -> tuple[Section, PrepareConfig]:
    import anndata

    rng = np.random.default_rng(0)
    path = folder / "noise.jpg"
    Image.fromarray(rng.integers(0, 256, (1500, 1500, 3), dtype=np.uint8)).save(path)
    spots = anndata.AnnData(np.ones((20, 3), dtype=np.float32))
    spots.obs["in_tissue"] = True
    spots.obsm[SPATIAL] = rng.uniform(300, 1200, (20, 2))
    return Section("a", "a", spots, open_image(path), 0.73, "made up", "other"), PrepareConfig(mpp=3.44, window_px=64)


def patches(section: Section, config: PrepareConfig, folder: Path) -> Callable[[], None]:
    centers = np.asarray(section.spots.obsm[SPATIAL], dtype=np.float64)
    names = list(section.spots.obs_names)

    def run() -> None:
        windows = windows_of(section, config)
        corners = windows.corners(centers)
        write_patches(folder / "p.h5", windows.read_all(corners), corners, names, window_px=config.window_px, side=windows.side)
        section.image.close()

    return run


def all_image_work(section: Section, config: PrepareConfig, folder: Path) -> None:
    """What `write_section` does, without the counts."""
    overview = tissue_overview(section.image, section.mpp)
    mask = find_tissue(overview, section.mpp)
    selection = select_spots(section, mask, config)
    overview.thumbnail(THUMBNAIL_PX)
    write_picture(folder / "q.png", draw_qc(section, mask, selection, overview))
    patches(section, config, folder)()


def decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def rows(quick: bool) -> list[comparison.Row]:
    Image.MAX_IMAGE_PIXELS = None  # Pillow warns of images like this one
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        section, config = noise(folder) if quick else c2()
        path = section.image.path
        ours, whole, pillow = (
            patches(section, config, folder),
            partial(all_image_work, section, config, folder),
            partial(decode, path),
        )
        whole()  # what is imported once
        rounds = 1 if quick else 7
        seconds, everything, peer = comparison.in_turns(rounds, ours, whole, pillow)
        profile = comparison.profiled(whole)
        if not quick:
            keep_freed_memory()
        kept, pillow_kept = comparison.in_turns(rounds, whole, pillow)
    size = f"{section.image.width:,} x {section.image.height:,} px, {len(section.spots)} patches of {config.window_px} px"
    return [
        comparison.compared(
            "prepare_image_path",
            ours=seconds,
            peer=peer,
            at_most=1.5,
            packages=("stexpr", "numpy", "pillow", "imagecodecs", "h5py"),
            how=f"{size}: decoded, cut, written and hashed; peer: Pillow decodes the image; medians of {rounds} turns. With "
            f"tissue mask, checks and pictures {everything:.3g} s, {everything / peer:.2f} times the peer; with freed memory "
            f"kept, as the command line does, {kept:.3g} s, {kept / peer:.2f} times the peer, itself {pillow_kept:.3g} s then",
            profile=f"of all the image work: {profile}",
            all_image_work=round(everything, 4),
            all_image_work_memory_kept=round(kept, 4),
            peer_memory_kept=round(pillow_kept, 4),
        )
    ]


if __name__ == "__main__":
    comparison.main("prepare", rows, __doc__)
