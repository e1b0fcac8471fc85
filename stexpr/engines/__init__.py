"""Engines: run many independent tasks, training runs or slides, on one machine or many."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from stexpr.engines.tasks import Engine
from stexpr.errors import ConfigError, nearest

__all__ = ["ENGINES", "EngineOptions", "make_engine"]

EngineName: TypeAlias = Literal["local", "ray", "slurm"]
ENGINES: Final[tuple[str, ...]] = get_args(EngineName)


@dataclass(frozen=True)
class EngineOptions:
    """What can be asked of an engine.

    Attributes:
        workers: Tasks at a time; None leaves it to the engine.
        threads: CPU threads of each task; None leaves it to the engine.
        gpus: GPUs of each task, also a part of one; None leaves it to the engine.
        address: Of a Ray cluster to join; None starts Ray on this machine.
        slurm: Parameters of submitit, such as `slurm_partition`.
    """

    workers: int | None = None
    threads: int | None = None
    gpus: float | None = None
    address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)


def make_engine(name: str, options: EngineOptions, logs: Path) -> Engine:
    """Build an engine.

    Args:
        name: One of `ENGINES`.
        options: What is asked of it.
        logs: Folder of what its workers print.

    Raises:
        ConfigError: There is no such engine, its package is not installed, or a cluster does not answer.
    """
    if name == "local":
        from stexpr.engines.local import LocalEngine

        return LocalEngine(logs, workers=options.workers, threads=options.threads)
    if name == "ray":
        from stexpr.engines.ray import RayEngine

        return RayEngine(logs, workers=options.workers, threads=options.threads, gpus=options.gpus, address=options.address)
    if name == "slurm":
        from stexpr.engines.slurm import SlurmEngine

        return SlurmEngine(logs, workers=options.workers, threads=options.threads, gpus=options.gpus, options=options.slurm)
    raise ConfigError(f"no engine {name!r}; {nearest(name, ENGINES)}")
