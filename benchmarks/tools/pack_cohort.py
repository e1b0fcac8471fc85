"""Make a small copy of a prepared cohort to carry to another machine: `pack_cohort.py COHORT TARGET --window-px 64`.

Patches are center-cropped to the window of a study and compressed without loss; all else is copied. What a study sees at that
window is the same, to the bit. The copy has another hash than the cohort, as it has other files.
"""

import argparse
import json
import shutil
from pathlib import Path

import h5py

from stexpr.config.files import hash_file
from stexpr.data.store import PreparedCohort


def pack(source: Path, target: Path, window_px: int) -> None:
    cohort = PreparedCohort.open(source)
    manifest = json.loads((source / "cohort.json").read_text(encoding="utf-8"))
    for section in manifest["sections"]:
        for name, file in section["files"].items():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if name.startswith("patches/"):
                crop(source / name, copy, cohort, section["section"], window_px)
            else:
                shutil.copyfile(source / name, copy)
            file |= {"bytes": copy.stat().st_size, "sha256": hash_file(copy)}
    text = json.dumps({**manifest, "window_px": window_px}, indent=1, ensure_ascii=False)
    (target / "cohort.json").write_text(text + "\n", encoding="utf-8")


def crop(source: Path, target: Path, cohort: PreparedCohort, section: str, window_px: int) -> None:
    patches = cohort.patches(section, window_px)
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        new.create_dataset("img", data=patches, chunks=(1, *patches.shape[1:]), compression="gzip", shuffle=True)
        for name in set(old) - {"img"}:
            old.copy(name, new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--window-px", type=int, required=True)
    asked = parser.parse_args()
    pack(asked.cohort, asked.target, asked.window_px)
