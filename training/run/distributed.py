"""Several processes for one training run, as `torchrun` starts them. Without it there is one, and nothing here acts.

All read the same data and hold the same weights; each computes its share of the batches of a step, and the gradients
are summed. The first process, *main*, alone judges, writes and prints. Torch's DistributedDataParallel wraps the one
forward pass of a module; ours goes through two halves of a model, so the sum is taken after the backward pass. Knows no
model and no stage. Processes on several machines need a file system in common: a resumed run is read by all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as group

_PATIENCE = timedelta(hours=6)  # the others wait while main validates and writes


def is_launched() -> bool:
    """By torchrun, whatever the number of processes."""
    return group.is_available() and group.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[bool]:
    """All processes of this run as a group for the while, each with a GPU of its own; yields whether this is main."""
    if not is_launched():
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(group.get_node_local_rank() % torch.cuda.device_count())
    group.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    yield is_main()
    leave()


def leave() -> bool:
    """Dissolves the group: what follows is the work of one process. Returns whether this is the one, main."""
    was_main = is_main()
    if group.is_initialized():
        group.destroy_process_group()
    return was_main


def rank() -> int:
    return group.get_rank() if group.is_initialized() else 0


def world_size() -> int:
    return group.get_world_size() if group.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def on_main(find: Callable[[], float]) -> float:
    """What main finds, told to all; the others wait for it."""
    if world_size() == 1:
        return find()
    told = torch.tensor(find() if is_main() else 0.0, dtype=torch.float64)
    group.broadcast(told, src=0)
    return float(told)


def wait_for_main() -> None:
    on_main(lambda: 0.0)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """In place; all must name the same tensors in the same order."""
    if world_size() > 1:
        for tensor in tensors:
            group.broadcast(tensor.detach(), src=0)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Over all processes, in place, as one flat buffer. A parameter without a gradient here counts as zero."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    group.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
