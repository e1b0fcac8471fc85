"""Vision transformers as the library transformers saves them, made into timm's."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from stexpr.errors import ModelError
from stexpr.models.encoders import Encoder

BLOCK: Final = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
INSIDE: Final = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
OUTSIDE: Final = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
UNUSED: Final = ("pooler.", "embeddings.mask_token")
"""What the features do not depend on."""


def check_config(path: Path, encoder: Encoder, network: Any) -> None:
    """Compare what the tensors alone do not tell: the epsilon of the normalizations, the heads, the input.

    Args:
        path: `config.json` of transformers.
        encoder: What is known.
        network: timm's, of that encoder.

    Raises:
        ModelError: It cannot be read, or says something else.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        eps = float(said["layer_norm_eps"])
        heads, kind, side = said["num_attention_heads"], said["model_type"], said["image_size"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ModelError(
            f"the weights of {encoder.repository} are read with the config.json of transformers beside them, but {path} cannot "
            f"be read ({type(err).__name__}); copy both files from the repository"
        ) from err
    known = (encoder.norm_eps, network.blocks[0].attn.num_heads, encoder.layout, encoder.input_px)
    if (eps, heads, kind, side) != known:
        raise ModelError(
            f"{path} is of another network than {encoder.repository}: layer_norm_eps, num_attention_heads, model_type and "
            f"image_size are {(eps, heads, kind, side)}, known is {known}"
        )


def renamed_for_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of transformers' ViT or DINOv2 to timm's vision transformer, which joins query, key and value.

    Raises:
        ModelError: A name is of neither.
    """
    renamed: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = BLOCK.fullmatch(name)
        if name.startswith(UNUSED):
            continue
        if name in OUTSIDE:
            renamed[OUTSIDE[name]] = tensor
        elif found and found[2].removeprefix("attention.attention.") in ("query", "key", "value"):
            joined.setdefault(f"blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2].rpartition(".")[2]] = tensor
        elif found and found[2] in INSIDE:
            kind = "gamma" if found[3] == "lambda1" else found[3]
            renamed[f"blocks.{found[1]}.{INSIDE[found[2]]}.{kind}"] = tensor
        else:
            raise ModelError(f"the tensor {name!r} is of no vision transformer of transformers")
    for name, parts in joined.items():
        if len(parts) < 3:
            raise ModelError(f"{name} lacks {', '.join(sorted({'query', 'key', 'value'} - parts.keys()))}")
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed
