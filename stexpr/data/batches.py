"""How the rows of a dataset reach a device, batch by batch: from its own memory, from the host's, or from files.

Nothing here changes a value. On a GPU tensors that fit are copied there once, and batches are cut out of them without a loader;
what does not fit travels from pinned memory while the device still computes the batch before.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["RESIDENT_SHARE", "Columns", "PatchFiles", "free_memory", "sent"]

RESIDENT_SHARE: Final = 0.25
"""Share of a device's free memory that a dataset may take for good; the rest is for the network and its activations."""


def free_memory(device: torch.device) -> int:
    """Return the bytes free on a device; 0 where that is not known, so that nothing is put there for good."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def sent(rows: Tensor, device: torch.device) -> Tensor:
    """Send rows to a device; to a GPU by way of pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda" and not rows.is_cuda and not rows.is_pinned():
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


class Columns:
    """Tensors of one length on the host, whose rows are wanted on a device.

    Args:
        tensors: With a row per example.
        free: Bytes free on a device.
    """

    def __init__(self, *tensors: Tensor, free: Callable[[torch.device], int] = free_memory) -> None:
        self.tensors = tensors
        self._free = free
        self._placed: dict[torch.device, tuple[Tensor, ...] | None] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def resident(self, device: torch.device) -> tuple[Tensor, ...] | None:
        """Return the tensors on a device, None where they take more than `RESIDENT_SHARE` of what is free there.

        Decided at the first call for a device, and kept.
        """
        if device.type == "cpu":
            return self.tensors
        if device not in self._placed:
            fit = self.nbytes <= RESIDENT_SHARE * self._free(device)
            self._placed[device] = tuple(tensor.to(device) for tensor in self.tensors) if fit else None
        return self._placed[device]

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield the rows of each part, on the device."""
        resident = self.resident(device)
        if resident is None:
            for part in parts:
                yield tuple(sent(tensor[part], device) for tensor in self.tensors)
            return
        order = sent(torch.cat(list(parts)), device) if len(parts) else torch.empty(0)  # all parts in one copy
        for part in torch.split(order, [len(part) for part in parts]):
            yield tuple(tensor[part] for tensor in resident)


class PatchFiles:
    """Patches that stay in the files of their sections, read by this process or by loader processes.

    Loader processes live as long as this object: starting them takes longer than an epoch of a small cohort on a GPU.

    Args:
        readers: Of each section: its patches by position.
        window_px: Side of the patches.
    """

    def __init__(self, readers: Sequence[Any], window_px: int) -> None:
        self._rows = _Rows(readers, window_px)
        self._idle: dict[tuple[int, bool], _Loader] = {}

    def batches(self, parts: Sequence[Tensor], device: torch.device, workers: int) -> Iterator[UInt8[Tensor, "B H W 3"]]:
        """Yield the patches of each part, on the device.

        Args:
            parts: Rows, batch by batch.
            device: Where they go.
            workers: Loader processes; with 0 this process reads.
        """
        if not workers:
            yield from (sent(self._rows[part], device) for part in parts)
            return
        key = workers, device.type == "cuda"
        # Taken out while in use: two passes at a time need two loaders, and one that was broken off is not used again.
        loader = self._idle.pop(key, None) or _Loader(self._rows, *key)
        for patches in loader.passed(parts):
            yield sent(patches, device)
        self._idle[key] = loader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": {}}


class _Loader:
    """Loader processes that wait for the next pass."""

    def __init__(self, rows: "_Rows", workers: int, pin: bool) -> None:
        self._parts: list[Tensor] = []
        self._loader = DataLoader(
            rows, batch_size=None, sampler=self._parts, num_workers=workers, pin_memory=pin, persistent_workers=True
        )

    def passed(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        self._parts[:] = parts
        yield from self._loader


class _Rows(Dataset[Tensor]):
    """The patches of several files one after the other; an item is a whole batch of them."""

    def __init__(self, readers: Sequence[Any], window_px: int) -> None:
        self.readers = readers
        self.window_px = window_px
        self.starts = list(itertools.accumulate((len(reader) for reader in readers), initial=0))

    def __getitem__(self, rows: Tensor) -> UInt8[Tensor, "B H W 3"]:
        patches = np.empty((len(rows), self.window_px, self.window_px, 3), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            part = bisect.bisect_right(self.starts, row) - 1
            patches[place] = self.readers[part][row - self.starts[part]]
        return torch.from_numpy(patches)
