"""The processes of a torchrun, or the only one: who am I, wait for the others, share small objects."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from .errors import TpecError

Shared = TypeVar("Shared")

_TIMEOUT = timedelta(hours=12)


@contextmanager
def _peers_alive() -> Iterator[None]:
    """Another rank's death breaks the connection: that is its failure to explain, not a fault of this one."""
    try:
        yield
    except RuntimeError:
        raise TpecError("Another process of this run failed; see its message.") from None


@dataclass(frozen=True)
class World:
    """Rank and number of processes; a single process needs no process group."""

    rank: int = 0
    size: int = 1

    def share(self, value: Shared) -> Shared:
        """Rank 0's value, on every rank; also a barrier."""
        if self.size == 1:
            return value
        box = [value]
        with _peers_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Shared) -> list[Shared]:
        """Every rank's value, on every rank; also a barrier."""
        if self.size == 1:
            return [value]
        box: list[Shared | None] = [None] * self.size
        with _peers_alive():
            torch.distributed.all_gather_object(box, value)
        return box


def join_world() -> World:
    """The world that torchrun describes in the environment (over gloo, so that no GPU is needed), else a single one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return World()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=_TIMEOUT)
    return World(torch.distributed.get_rank(), size)


def leave_world(world: World) -> None:
    """Close the process group, if there is one."""
    if world.size > 1:
        torch.distributed.destroy_process_group()
