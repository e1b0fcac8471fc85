"""Slides in the formats of scanners, written from pixels: the least that openslide takes for one.

Every slide has its pixels at full size and at a quarter; JPEG at quality 95.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

TILE = 256
MPP = 0.5
PER_CM = (1e4 / MPP, 1e4 / MPP)
Pixels = np.ndarray


def jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def write_svs(path: Path, pixels: Pixels) -> None:
    height, width = pixels.shape[:2]
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}, "metadata": None}
    words = f"Aperio Image Library v11.2.1\r\n{width}x{height} ({TILE}x{TILE}) JPEG/RGB Q=95"
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=f"{words}|AppMag = 20|MPP = {MPP}", tile=(TILE, TILE), **options)
        file.write(pixels[::8, ::8].copy(), description="Aperio thumbnail", rowsperstrip=16, **options)
        file.write(pixels[::4, ::4].copy(), description=words, tile=(TILE, TILE), **options)


def write_ndpi(path: Path, pixels: Pixels) -> None:
    with tifffile.TiffWriter(path) as file:
        for down, lens in ((1, 20.0), (4, 5.0), (8, -1.0)):  # the last is the macro image
            level = pixels[::down, ::down]
            numbers = {65420: ("I", 1), 65421: ("f", lens), 65422: ("i", 0), 65423: ("i", 0), 65424: ("i", 0)}
            file.write(
                iter([jpeg(level)]),
                shape=level.shape,
                dtype=np.uint8,
                photometric="ycbcr",
                compression="jpeg",
                rowsperstrip=level.shape[0],
                metadata=None,
                software=False,
                resolution=(PER_CM[0] / down, PER_CM[1] / down),
                resolutionunit="CENTIMETER",
                extratags=[
                    (271, "s", 0, "Hamamatsu", True),
                    (272, "s", 0, "NanoZoomer", True),
                    *((tag, kind, 1, value, True) for tag, (kind, value) in numbers.items()),
                ],
            )


def write_scn(path: Path, pixels: Pixels) -> None:
    """Its collection is larger than its image on both sides, as a slide is larger than what was scanned of it."""
    height, width = pixels.shape[:2]
    nm = round(MPP * 1000)
    view = f'sizeX="{width * nm}" sizeY="{height * nm}" offsetX="0" offsetY="0"'
    sizes = ((width, height), (-(-width // 4), -(-height // 4)))
    levels = "".join(f'<dimension sizeX="{w}" sizeY="{h}" r="{i}" ifd="{i}"/>' for i, (w, h) in enumerate(sizes))
    text = f"""<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
<collection name="c" uuid="urn:uuid:1" sizeX="{(width + 100) * nm}" sizeY="{(height + 100) * nm}">
<image name="i" uuid="urn:uuid:2">
<creationDate>2012-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1"/>
<pixels sizeX="{width}" sizeY="{height}">{levels}</pixels><view {view}/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
</image></collection></scn>"""
    options: dict[str, Any] = {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 95},
        "tile": (TILE, TILE),
        "metadata": None,
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(pixels, description=text, resolution=PER_CM, **options)
        file.write(pixels[::4, ::4].copy(), resolution=(PER_CM[0] / 4, PER_CM[1] / 4), **options)


def write_dicom(folder: Path, pixels: Pixels) -> None:
    folder.mkdir()
    for number, down in enumerate((1, 4), start=1):
        (folder / f"{number}.dcm").write_bytes(_dicom(pixels[::down, ::down], MPP * down, number))


WRITERS: dict[str, Callable[[Path, Pixels], None]] = {
    "a.svs": write_svs,
    "a.ndpi": write_ndpi,
    "a.scn": write_scn,
    "dicom": write_dicom,
}

UID, WHOLE_SLIDE, JPEG_BASELINE = "1.2.826.0.1.3680043.8.498.1", "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.4.50"
LONG = ("OB", "SQ")


def _element(group: int, number: int, kind: str, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    content += (b" " if kind in ("CS", "DS", "IS") else b"\0") * (len(content) % 2)
    head = struct.pack("<HH", group, number) + kind.encode()
    size = b"\0\0" + struct.pack("<I", len(content)) if kind in LONG else struct.pack("<H", len(content))
    return head + size + content


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _dicom(pixels: Pixels, mpp: float, number: int) -> bytes:
    """One level of a whole-slide microscopy image: tiled in full, JPEG, explicit little endian."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % TILE), (0, -width % TILE), (0, 0)), constant_values=255)
    tiles = [
        jpeg(padded[y : y + TILE, x : x + TILE])
        for y in range(0, padded.shape[0], TILE)
        for x in range(0, padded.shape[1], TILE)
    ]
    frames = [tile + b"\0" * (len(tile) % 2) for tile in tiles]
    meta = [(1, "OB", b"\0\1"), (2, "UI", WHOLE_SLIDE), (3, "UI", f"{UID}.{number}"), (0x10, "UI", JPEG_BASELINE)]
    header = b"".join(_element(2, *one) for one in (*meta, (0x12, "UI", UID)))
    header = _element(2, 0, "UL", struct.pack("<I", len(header))) + header
    spacing = f"{mpp / 1000:.6f}"
    measures = _element(0x28, 0x30, "DS", f"{spacing}\\{spacing}")
    short = {0x02: 3, 0x06: 0, 0x10: TILE, 0x11: TILE, 0x100: 8, 0x101: 8, 0x102: 7, 0x103: 0}
    image = {key: ("US", struct.pack("<H", value)) for key, value in short.items()}
    image |= {0x04: ("CS", "YBR_FULL_422"), 0x08: ("IS", str(len(frames)))}
    kind = "ORIGINAL\\PRIMARY\\VOLUME\\NONE" if number == 1 else "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"
    elements = [
        _element(8, 8, "CS", kind),
        _element(8, 0x16, "UI", WHOLE_SLIDE),
        _element(8, 0x18, "UI", f"{UID}.{number}"),
        _element(8, 0x60, "CS", "SM"),
        *(_element(0x20, key, "UI", f"{UID}.{key}") for key in (0x0D, 0x0E, 0x52)),
        _element(0x20, 0x9311, "CS", "TILED_FULL"),
        *(_element(0x28, key, *image[key]) for key in sorted(image)),
        _element(0x48, 6, "UL", struct.pack("<I", width)),
        _element(0x48, 7, "UL", struct.pack("<I", height)),
        _element(0x5200, 0x9229, "SQ", _item(_element(0x28, 0x9110, "SQ", _item(measures)))),
    ]
    starts = np.cumsum([0, *(8 + len(frame) for frame in frames[:-1])])
    parts = [
        _item(struct.pack(f"<{len(starts)}I", *starts.tolist())),
        *map(_item, frames),
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    ]
    data = struct.pack("<HH", 0x7FE0, 0x10) + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFF) + b"".join(parts)
    return b"\0" * 128 + b"DICM" + header + b"".join(elements) + data
