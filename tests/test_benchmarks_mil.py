"""Bag heads trained side by side: each fold of a stack is the head it would be alone."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional

from stexpr.models.bag import make_head
from stexpr.types import BagBatch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
D, WIDTHS = 6, (8, 5)


@pytest.fixture(scope="module")
def stack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mil_stack", BENCHMARKS / "mil_stack.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["mil_stack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["attention", "gated_attention", "mean", "max"])
@pytest.mark.parametrize("per_step", [1, 4])
def test_a_fold_of_a_stack_is_the_head_trained_alone(stack: ModuleType, kind: str, per_step: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 20)
    bag, label = np.repeat(np.arange(20), lengths), np.arange(20) % 2 == 0
    instances = torch.from_numpy(rng.normal(size=(len(bag), D)).astype(np.float32))
    masks = np.array([np.isin(np.arange(20), rng.permutation(20)[:16]) for _ in range(3)])
    setting = stack.Setting(WIDTHS, 0.0, 2.0, 0.05, 0.9, 0.01, 3, per_step)
    bags = stack.Bags(instances, bag, label, masks, setting.clip)
    heads = [make_head(kind, D, 1, widths=WIDTHS, dropout=0.0, seed=i) for i in range(3)]
    together = stack.Stack(heads)
    assert list(stack.train(together, bags, masks, setting, seed=1)) == [1, 2, 3]
    accuracies = stack.accuracies(together, bags, ~masks)

    order_rng, own = np.random.default_rng(1), np.stack([np.flatnonzero(mask) for mask in masks])
    orders = [order_rng.permuted(own, axis=1) for _ in range(3)]
    for fold, head in enumerate(heads):
        scaled = stack.standardized(instances, torch.from_numpy(masks[fold][bag]), setting.clip)
        alone = [scaled[torch.from_numpy(bag == i)] for i in range(20)]
        optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for order in orders:
            for step in np.array_split(order[fold], 16 // per_step):
                optimizer.zero_grad()
                target = torch.from_numpy(label[step].astype(np.float32))
                output = head(BagBatch.of([alone[i] for i in step])).output[:, 0]
                functional.binary_cross_entropy_with_logits(output, target).backward()
                optimizer.step()
        stacked = dict(together.head.named_parameters())
        for name, weight in head.named_parameters():
            own_weight = stacked[name][fold]
            torch.testing.assert_close(own_weight.T if name.endswith("weight") else own_weight[0], weight, rtol=1e-4, atol=1e-4)
        tested = np.flatnonzero(~masks[fold])
        predicted = (head(BagBatch.of([alone[i] for i in tested])).output[:, 0] > 0).numpy()
        assert accuracies[fold] == (predicted == label[tested]).mean()


def test_a_feature_that_is_constant_in_training_says_nothing(stack: ModuleType) -> None:
    instances = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 60.0], [99.0, 0.0]])
    scaled = stack.standardized(instances, torch.tensor([True, True, False, False]), 3.0)
    half = 0.5**0.5
    torch.testing.assert_close(scaled, torch.tensor([[-half, 0.0], [half, 0.0], [0.0, 0.0], [3.0, 0.0]]))


def test_the_setting_is_the_one_that_inner_validation_chose() -> None:
    found = json.loads((BENCHMARKS / "results" / "mil.json").read_text(encoding="utf-8"))
    best, rows = found["selection"][0], found["selection"]
    assert len(rows) == 30
    assert best["mean"] == max(row["mean"] for row in rows)
    for key in ("decay", "clip", "epochs"):
        assert found["settings"][key] == best[key]
    for name, by in found["published"].items():
        for kind, published in by.items():
            assert found[name][kind]["mean"] >= published - 0.03
            assert found[name][kind]["folds"] == 50
