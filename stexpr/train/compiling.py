"""A training's loss compiled by torch (`training.compile`), and what the compiling took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

__all__ = ["Compiling"]

BACKEND: Final = "inductor"


@dataclass
class Compiling:
    """Compiles losses, and counts the seconds that their first steps take.

    Every size of batch is compiled for itself: a study has two, and code for any size is slower.

    Attributes:
        backend: Of `torch.compile`.
        seconds: Spent in the first step of each size, over all trainings; nearly all of it is compiling.
        shapes: Sizes compiled.
    """

    backend: str = BACKEND
    seconds: float = 0.0
    shapes: int = 0
    _seen: set[int] = field(default_factory=set)

    def compiled(self, module: nn.Module) -> Any:
        """Return what computes the same as a module, compiled at its first calls; what was compiled before is forgotten."""
        torch.compiler.reset()  # torch keeps a few versions of a function, and a sweep has more trainings than that
        self._seen = set()
        return torch.compile(module, backend=self.backend, dynamic=False)

    @contextmanager
    def counted(self, size: int, device: torch.device) -> Iterator[None]:
        """Count the seconds of a step if it is the first with so many examples; waits for the device then, and only then."""
        if size in self._seen:
            yield
            return
        began = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds += time.perf_counter() - began
        self.shapes += 1
        self._seen.add(size)

    def described(self) -> dict[str, Any]:
        """Return plain JSON values, for a record."""
        return {"backend": self.backend, "warm_up_s": round(self.seconds, 1), "shapes": self.shapes}
