"""Many processes that train as one: they share the batch that one process would compute.

Every process holds an equal share of each batch, in the order of its rank, and the same random state. What is drawn for
each window (:func:`rows`), and what is computed over the batch (:func:`gather`, :class:`BatchNorm2d`), comes out as in
one process. PyTorch averages the gradients of the processes (``DistributedDataParallel``), so a loss is either a mean
over a process's own windows, or a function of all gathered windows that every process computes alike.

``torchrun`` starts them, on one machine or on each of several (the first machine's address after ``--rdzv-endpoint``)::

    torchrun --standalone --nproc-per-node 2 -m armlet_runtime pretrain hapt --out runs/pretrain
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m armlet_runtime ...

Every machine needs the data, and for fine-tuning the pretrained run; the run's folder is written by the first process
alone, and a training that was begun by one number of processes may go on with another. If a process dies, ``torchrun``
ends the others and names it.

With one process every function here has nothing to exchange, and costs nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.errors import UsageError

_T = TypeVar("_T")

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives up; reading a data set for the first time takes minutes."""


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it started more than this one; leave them at the end.

    Args:
        device: Device of this process; NCCL joins GPUs, Gloo CPUs.

    Raises:
        UsageError: The processes cannot find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the processes of this training cannot find each other: {error}") from None
    try:
        yield
        # Who is done first waits: leaving would break the connections of those that still send.
        wait()
    finally:
        dist.destroy_process_group()


def world() -> int:
    """How many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def from_first(value: _T) -> _T:
    """The first process's value, for all."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def share(batch: int) -> slice:
    """Which windows of a batch are this process's.

    Raises:
        UsageError: The batch cannot be divided by the number of processes.
    """
    if batch % world():
        raise UsageError(
            f"a batch of {batch} windows cannot be shared by {world()} processes; choose a batch size divisible by "
            f"{world()} in the recipe"
        )
    size = batch // world()
    return slice(rank() * size, (rank() + 1) * size)


class _Sum(torch.autograd.Function):
    """The sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())


def gather(part: Tensor) -> Tensor:
    """The rows (world * n, ...) of all processes, by rank, of which each has (n, ...); differentiable."""
    if world() == 1:
        return part
    if part.dtype == torch.bool:  # not every backend adds these
        return gather(part.to(torch.uint8)).bool()
    whole = part.new_zeros(world(), *part.shape)
    whole[rank()] = part
    total: Tensor = _Sum.apply(whole)  # type: ignore[no-untyped-call]
    return total.flatten(0, 1)


def mean(value: Tensor) -> Tensor:
    """The mean over the processes, without gradients."""
    if world() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


def widen(value: Tensor) -> Tensor:
    """A tensor for a loss or a statistic: float32 in place of the bfloat16 of autocast; float64 stays."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def rows(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """This process's rows of a random draw for the whole batch.

    Args:
        draw: Takes a number of rows, gives that many, from PyTorch's generator.
        count: Rows of this process.
    """
    if world() == 1:
        return draw(count)
    return draw(count * world())[rank() * count : (rank() + 1) * count]


class Dropout(nn.Dropout):
    """Dropout of (B, ...) that hides the same in many processes as in one."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop, when training."""
        if world() == 1 or not self.training:
            return F.dropout(input, self.p, self.training)
        unit = torch.ones((), dtype=input.dtype, device=input.device)
        return input * rows(lambda count: F.dropout(unit.expand(count, *input.shape[1:]), self.p), len(input))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) by the statistics of the whole batch, wherever its parts are.

    (PyTorch's ``SyncBatchNorm`` is for GPUs only.)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, and follow the statistics when training."""
        if world() == 1 or not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        each = widen(input)
        variance, average = torch.var_mean(each, (0, 2, 3), correction=0)
        # The variance of all is the mean of the variances plus the variance of the means: no difference of large sums.
        averages, variances = gather(torch.stack([average, variance])[None]).unbind(1)
        average = averages.mean(0)
        variance = variances.mean(0) + (averages - average).square().mean(0)
        with torch.no_grad():
            count = world() * input.numel() / input.shape[1]
            self.running_mean.lerp_(average, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normal = each * scale[:, None, None] + (self.bias - average * scale)[:, None, None]
        return normal.to(input.dtype)
