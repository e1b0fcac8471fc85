"""What a file may ask for when a network is built from it: plain values of a network, nothing of timm's factory."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stexpr.errors import ModelError
from stexpr.models.arguments import MAX_NUMBER, checked_arguments

names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True).map(lambda name: f"own_{name}")
scalars = st.none() | st.booleans() | st.integers(-MAX_NUMBER, MAX_NUMBER) | st.sampled_from(["silu", "layernorm2d", ""])


@given(st.dictionaries(names, scalars | st.lists(scalars, max_size=4), max_size=5))
def test_plain_values_pass_and_survive_json(arguments):
    assert checked_arguments(arguments, "here") == arguments
    assert checked_arguments(json.loads(json.dumps(arguments)), "here") == arguments


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"pretrained": True}, "pretrained"),
        ({"checkpoint_path": "x"}, "checkpoint_path"),
        ({"cache_dir": "x"}, "cache_dir"),
        ({"__class__": 1}, "__class__"),
        ({"Depth": 1}, "Depth"),
        ({"norm_layer": "../../etc"}, "norm_layer"),
        ({"norm_layer": "a b"}, "norm_layer"),
        ({"depth": 10**9}, "depth"),
        ({"init_values": math.nan}, "init_values"),
        ({"init_values": -math.inf}, "init_values"),
        ({"block": {"a": 1}}, "block"),
        ({"block": [[1]]}, "block"),
        ({"block": [0] * 65}, "block"),
        ({"in_chans": 4}, "3 color channels"),
        ({f"a{i}": 1 for i in range(65)}, "at most 64"),
        ([1, 2], "at most 64"),
        ("depth=2", "at most 64"),
    ],
    ids=str,
)
def test_anything_else_is_refused(arguments, word):
    with pytest.raises(ModelError, match=word):
        checked_arguments(arguments, "here")


def test_classes_and_three_channels_are_left_out():
    assert checked_arguments({"num_classes": 9, "in_chans": 3, "depth": 2}, "here") == {"depth": 2}
