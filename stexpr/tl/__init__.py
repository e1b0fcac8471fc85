"""What a trained model adds to an AnnData, scanpy style: in place, with `key_added=` and `copy=`.

`embed`, `predict_expression` and `predict` (both, in one pass) read the tissue image; `score_prediction` compares with what
was measured; `spatial_domains` clusters. How each thing was made stands in `uns["stexpr"]`. `lazyslide` is for those who
start from a slide in LazySlide.
"""

from stexpr.tl import lazyslide
from stexpr.tl.apply import embed, predict, predict_expression
from stexpr.tl.domains import spatial_domains
from stexpr.tl.score import score_prediction
from stexpr.tl.sections import ApplyOptions

__all__ = ["ApplyOptions", "embed", "lazyslide", "predict", "predict_expression", "score_prediction", "spatial_domains"]
