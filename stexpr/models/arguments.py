"""Arguments of a timm architecture as plain JSON values, which may come from a file that somebody else wrote."""

import re
from collections.abc import Mapping
from typing import Any, Final

from stexpr.errors import ModelError

MAX_ARGUMENTS: Final = 64
MAX_NUMBER: Final = 8192
"""Above every width, depth and input side of timm's networks."""
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
WORD: Final = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
NOT_OF_THE_NETWORK: Final = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "pretrained_strict"),
    *("pretrained_filter_fn", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only"),
    *("feature_cfg", "feature_cls", "out_indices", "model_cfg", "pruned", "device", "dtype"),
}
"""What steers timm's factory: where weights come from, what is built around the network."""


def checked_arguments(arguments: Any, source: str) -> dict[str, Any]:
    """Check the arguments an architecture is built with.

    Values are numbers, truth values, words (names of layers, never paths), nothing, or lists of these. The number of
    classes is left out: a backbone has no classifier.

    Args:
        arguments: By name.
        source: Where they were read, for messages.

    Returns:
        The arguments that decide the network.

    Raises:
        ModelError: One is not of these kinds, too large, asks for other than three color channels, or would have timm read
            or build something else than the network.

    Example:
        >>> checked_arguments({"depth": 2, "init_values": 1e-5, "num_classes": 10}, "config.json")
        {'depth': 2, 'init_values': 1e-05}
    """
    if not isinstance(arguments, Mapping) or len(arguments) > MAX_ARGUMENTS:
        raise ModelError(f"{source}: the arguments of an architecture are at most {MAX_ARGUMENTS} names and values")
    for name, value in arguments.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in NOT_OF_THE_NETWORK:
            raise ModelError(f"{source}: {name!r} is no argument of a network; leave it out")
        if not _is_plain(value):
            raise ModelError(
                f"{source}: {name} = {str(value)[:80]!r}; an argument of a network is a number up to {MAX_NUMBER}, true, "
                "false, null, the name of a layer, or a list of these"
            )
    if arguments.get("in_chans", 3) != 3:
        raise ModelError(f"{source}: in_chans = {arguments['in_chans']}, but patches have 3 color channels")
    return {name: value for name, value in arguments.items() if name not in ("num_classes", "in_chans")}


def _is_plain(value: Any, *, nested: bool = False) -> bool:
    if isinstance(value, list | tuple):
        return not nested and len(value) <= MAX_ARGUMENTS and all(_is_plain(one, nested=True) for one in value)
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= MAX_NUMBER)
