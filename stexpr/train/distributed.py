"""One training shared by several processes that `torchrun` started: who they are, and what they tell each other.

A process joins the others only where the environment says that there are others (WORLD_SIZE above 1). Gradients travel by
NCCL between GPUs and by gloo between CPUs; everything else, such as predictions and stop signals, by gloo.
"""

import gc
import inspect
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stexpr.errors import ConfigError, StexprError, TrainingError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
LEAVE_S = 5.0
"""How long a failed process waits for the others before it leaves them."""


class LostProcessError(TrainingError):
    """Another process of the training ended, and this one cannot go on without it."""


@dataclass(frozen=True)
class Processes:
    """The processes of one training; alone unless `joined` says otherwise.

    Attributes:
        rank: Number of this one; 0 writes and prints.
        size: How many there are.
        control: The gloo group of everything but gradients, None when alone.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, rows: Int64[Tensor, "S"]) -> Int64[Tensor, "S_own"]:
        """Return this process's rows, which are contiguous and in order of rank."""
        return rows.tensor_split(self.size)[self.rank]

    def start(self, n: int) -> int:
        """Return where this process's share of `n` rows begins."""
        return sum(len(share) for share in torch.arange(n).tensor_split(self.size)[: self.rank])

    def gather(self, own: Float32[np.ndarray, "S_own G"]) -> Float32[np.ndarray, "S G"]:
        """Return the rows of all processes, in order of rank."""
        return own if self.size == 1 else np.concatenate(self.exchange(own))

    def exchange(self, own: T) -> list[T]:
        """Return what each process gives, in order of rank."""
        if self.size == 1:
            return [own]
        given: list[Any] = [None] * self.size
        dist.all_gather_object(given, own, group=self.control)
        return given

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over processes of values on the CPU."""
        if self.size > 1:
            dist.all_reduce(values, group=self.control)
        return values

    def largest(self, value: int) -> int:
        """Return the largest value any process gives: what one wants, all do."""
        if self.size == 1:
            return value
        agreed = torch.tensor(value)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self.control)
        return int(agreed)

    def on_first(self, action: Callable[[], T]) -> T:
        """Let the first process act while the others wait, and return what it got.

        Args:
            action: What only one may do; its result is plain data.

        Raises:
            TrainingError: In the others, with the words of whatever the action raised in the first.
        """
        if self.size == 1:
            return action()
        said: list[Any] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                said[0] = action()
            except Exception as err:
                failure, said[1] = err, str(err) or type(err).__name__
        dist.broadcast_object_list(said, src=0, group=self.control)
        if failure is not None:
            raise failure
        if said[1] is not None:
            raise TrainingError(said[1])
        result: T = said[0]
        return result

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients are averaged over the processes; the same module when alone."""
        if self.size == 1:
            return module
        # statistics of batch normalization are averaged after each step instead, so that all processes predict alike
        names = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # its name before 2.15
        wrapped: nn.Module = DistributedDataParallel(module, **{option: False})  # type: ignore[arg-type]
        return wrapped

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """Keep the gradients of what runs inside for a later exchange."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else _nothing()

    def synchronized(self, model: M) -> M:
        """Let batch normalization on GPUs take its statistics over all processes; on CPUs torch has no such layer."""
        if self.size == 1 or not next(model.parameters()).is_cuda:
            return model
        from timm import layers  # torch's own conversion drops the activation inside timm's layers

        synchronized: M = layers.convert_sync_batchnorm(model)  # type: ignore[attr-defined, no-untyped-call]
        return synchronized

    def average_statistics(self, model: nn.Module) -> None:
        """Make the running statistics of batch normalization the mean of those of all processes."""
        if self.size == 1 or not (layers := unsynchronized(model)):
            return
        buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
        flat = torch.cat([buffer.detach().flatten().double().cpu() for buffer in buffers])
        mean = self.total(flat) / self.size
        for buffer, own in zip(buffers, torch.split(mean, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(own.view_as(buffer))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def normalizes_batches(model: nn.Module) -> bool:
    """Whether what the model says of a patch in training depends on the batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def unsynchronized(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the layers that normalize over the examples of one process."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [layer for layer in model.modules() if isinstance(layer, kinds) and not isinstance(layer, nn.SyncBatchNorm)]


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes of this training, if there are any, and leave them when it ends.

    An error that several processes raise in the same words is marked `said` in all but one, so that it is printed once.

    Args:
        device: `runtime.device` of the study.

    Raises:
        ConfigError: The device names one GPU, which several processes cannot share.
        TrainingError: There are more processes than GPUs.
        LostProcessError: Another process ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"stexpr/{attempt}", store)  # type: ignore[attr-defined]
    try:
        dist.init_process_group(_backend(device), store=store, rank=rank, world_size=size)
        # the first process scores and fits baselines while the others wait
        yield Processes(rank, size, dist.new_group(backend="gloo", timeout=timedelta(days=7)))
        gc.collect()  # gradient hooks hold the group, and gloo can hang when it goes before them
        dist.barrier()
    except Exception as err:
        told = _lost(err, rank)
        told.said = store.add(f"said/{told}", 1) > 1  # type: ignore[attr-defined]
        traceback.clear_frames(err.__traceback__)
        gc.collect()
        _wait_for_all(store, size)
        if told is err:
            raise
        raise told from err
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _backend(device: str) -> str:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "gloo"
    if device not in ("auto", "cuda"):
        raise ConfigError(f"runtime.device = {device} names one device, but there are several processes; set it to cuda or cpu")
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise TrainingError(f"more processes than GPUs ({found}) on this machine; start torchrun with --nproc-per-node {found}")
    torch.cuda.set_device(local)
    return "nccl"


def _lost(err: Exception, rank: int) -> Exception:
    words = str(err)
    if isinstance(err, StexprError) or not (isinstance(err, dist.DistError) or "gloo" in words):
        return err
    return LostProcessError("another process of this training ended, so this one stops; what it said is above or below")


def _wait_for_all(store: Any, size: int) -> None:
    """Wait until all processes are about to leave, but not long for those that cannot."""
    end = time.monotonic() + LEAVE_S
    store.add("leaving", 1)
    while store.add("leaving", 0) < size and time.monotonic() < end:
        time.sleep(0.05)
