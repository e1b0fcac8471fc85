"""Bags on disk: the patches of a slide, one HDF5 file per slide.

Ours hold `features` (patches x features, half precision), `coords` (top-left corners, level-0 pixels) and attributes for
microns per pixel, patch size and encoder; where they were asked for also `expression` (patches x `genes`), `color` and
`patches`, the pixels. Files of TRIDENT, CLAM (`features`) and STAMP (`feats`) are read as they are. A header says how large a
bag is before any of it is read, and rows come in chunks, so that 200,000 patches need not be in memory.
"""

from stexpr.data.bags.bag import Bag, Instances
from stexpr.data.bags.layouts import read_bag
from stexpr.data.bags.writing import BagRows, write_bag

__all__ = ["Bag", "BagRows", "Instances", "read_bag", "write_bag"]
