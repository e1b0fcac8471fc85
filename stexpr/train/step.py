"""One optimizer step over a batch, in as many parts as memory asks for, shared by as many processes as there are."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stexpr.config import TrainingConfig
from stexpr.errors import TrainingError
from stexpr.inference import autocast, out_of_memory, release_memory
from stexpr.models.trainable import Loss, TrainableModel
from stexpr.train.accumulation import Accumulation
from stexpr.train.compiling import Compiling
from stexpr.train.distributed import Processes


class _LossOf(nn.Module):
    """A model whose forward is its loss, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: TrainableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Loss:
        return self.model.loss(batch)


class Step:
    """Takes optimizer steps whose gradient is that of the mean loss over the whole batch.

    Each part and each process weighs as many examples as it has, so neither their number nor uneven shares change the
    gradient, but for rounding. Batch normalization does see the parts: its running statistics then move by less each time.

    Args:
        model: The model, on its device.
        optimizer: Of its parameters.
        training: Precision and clipping.
        processes: Who shares each batch.
        accumulation: In how many parts a share is processed; doubled here when memory ends.
        compiling: Compiles the loss; None leaves it as it is.

    Raises:
        TrainingError: Several processes, or several parts, would train another loss.
    """

    def __init__(
        self,
        model: TrainableModel,
        optimizer: torch.optim.Optimizer,
        training: TrainingConfig,
        processes: Processes,
        accumulation: Accumulation,
        compiling: Compiling | None = None,
    ) -> None:
        if model.goes_in_parts and processes.size > 1:
            raise TrainingError(
                f"{processes.size} processes cannot share the training of a slide head; start one, and let a sweep run several"
            )
        if model.couples_examples and not model.goes_in_parts and (processes.size > 1 or accumulation.parts > 1):
            shared = f"{processes.size} processes share" if processes.size > 1 else f"{accumulation.parts} parts make up"
            raise TrainingError(
                f"the loss correlates over the batch, which {shared}: each would train another loss; take "
                "model.loss=mse or model.loss=negative_binomial, or train in one process with a smaller training.batch_size"
            )
        self.model = model
        self.optimizer = optimizer
        self.training = training
        self.processes = processes
        self.accumulation = accumulation
        self.device = next(model.parameters()).device
        self._parallel = processes.parallel(_LossOf(model))
        self._compiling = compiling
        self._compiled = compiling.compiled(self._parallel) if compiling is not None else None
        self._batch_norms = [
            (layer, layer.momentum)
            for layer in model.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is not None
        ]

    def take(self, batch: Any, *, total: int, number: int, seed: int) -> dict[str, Tensor]:
        """Take one step.

        Args:
            batch: This process's share of the batch, on its device.
            total: Examples of the whole batch.
            number: Steps taken before, over all epochs.
            seed: Of dropout and the like.

        Returns:
            The share's part of each mean loss over the whole batch: the processes' values add up to it.

        Raises:
            TrainingError: There is no memory for the smallest part; or there is none in one of several processes, which
                the next start remembers.
        """
        while True:
            try:
                losses = self._gradient(batch, total, number, seed)
                break
            except (RuntimeError, MemoryError) as err:
                if not out_of_memory(err):
                    raise
                if self.model.goes_in_parts:
                    raise TrainingError(
                        "out of memory with the bags of one patient; set training.patches to draw some"
                    ) from err
                self._take_less(total // self.processes.size, err)
            self.optimizer.zero_grad(set_to_none=True)
            release_memory()
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.processes.average_statistics(self.model)
        return losses

    def _gradient(self, batch: Any, total: int, number: int, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        if self.model.goes_in_parts:
            whole = self.model.gradient(batch)
            return {"loss": whole.total, **whole.parts}
        # every process takes equally many parts, because synchronized batch normalization waits for each of them
        n = min(self.accumulation.parts, total // self.processes.size)
        losses: dict[str, Tensor] = {}
        for index, part in enumerate(batch.split(n) if n > 1 else (batch,)):
            young = self._average_young_statistics(number * n + index, n)
            with nullcontext() if index == n - 1 else self.processes.apart(self._parallel), self._counted(part, young):
                with autocast(self.device, self.training.precision):
                    loss: Loss = self._parallel(part) if self._compiled is None or young else self._compiled(part)
                share = loss.denominator / total
                (loss.total * (share * self.processes.size)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                losses[name] = losses.get(name, 0) + value * share
        return losses

    def _counted(self, part: Any, young: bool) -> AbstractContextManager[None]:
        if self._compiling is None or young:
            return nullcontext()
        return self._compiling.counted(len(part), self.device)

    def _take_less(self, n: int, err: Exception) -> None:
        at_a_time = self.accumulation.at_a_time(n)
        try:
            self.accumulation.double(at_a_time, coupled=self.model.couples_examples)
        except TrainingError as refused:
            raise refused from err
        if self.processes.size > 1:  # the others already wait for this one's gradients, and cannot be called back
            raise TrainingError(
                f"process {self.processes.rank} of {self.processes.size} ran out of memory with {at_a_time} examples at a "
                "time; the same command goes on with half as many (torchrun --max-restarts=5 starts it by itself)"
            ) from err

    def _average_young_statistics(self, number: int, parts: int) -> bool:
        """Let batch normalization's running statistics begin as the plain mean of the first steps.

        From their initial 0 and 1 they would take dozens of steps to reach a young network's activations (Inception-v3's are
        in the millions), and an epoch of a small cohort has a dozen; until then evaluation mode predicts nonsense. A compiled
        loss would be compiled again for each of these momenta, so young steps do without.
        """
        young = False
        for layer, momentum in self._batch_norms:
            grown = momentum if parts == 1 else 1 - (1 - momentum) ** (1 / parts)
            layer.momentum = max(grown, 1 / (number + 1))
            young = young or layer.momentum > grown
        return young
