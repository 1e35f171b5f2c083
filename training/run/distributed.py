"""Data-parallel training in the processes that `torchrun` starts. In a single process these functions do nothing.

All processes read the same data and hold the same weights. Each computes its share of the batches of a step, then the
gradients are summed. Only the first process, *main*, validates, writes and prints. DistributedDataParallel is not used
because it wraps one forward pass, and training here calls two halves of a model; the sum is taken after the backward
pass. Knows no model and no stage. Processes on several machines need a common file system, because every process reads
the checkpoint of a resumed run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as group

_TIMEOUT = timedelta(hours=6)  # the other processes wait while main validates and writes


def is_torchrun() -> bool:
    """Whether torchrun started this process, even as the only one."""
    return group.is_available() and group.is_torchelastic_launched()


@contextmanager
def process_group() -> Iterator[bool]:
    """Connects all processes of this run, each with its own GPU. Yields whether this process is main."""
    if not is_torchrun():
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(group.get_node_local_rank() % torch.cuda.device_count())
    group.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    yield is_main()
    leave_process_group()


def leave_process_group() -> bool:
    """Disconnects the processes; the work that follows is for main alone. Returns whether this process is main."""
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


def on_main(compute: Callable[[], float]) -> float:
    """Calls `compute` in main only and returns its result in all processes, which wait for it."""
    if world_size() == 1:
        return compute()
    result = torch.tensor(compute() if is_main() else 0.0, dtype=torch.float64)
    group.broadcast(result, src=0)
    return float(result)


def wait_for_main() -> None:
    on_main(lambda: 0.0)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """In place. All processes must pass the same tensors in the same order."""
    if world_size() > 1:
        for tensor in tensors:
            group.broadcast(tensor.detach(), src=0)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sums over all processes, in place, as one flat buffer. A parameter without a gradient counts as zero."""
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
