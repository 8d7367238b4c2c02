"""Divides the tokens of one forward pass among ranks, and exchanges them for heads around self-attention.

Every rank keeps a run of tokens in block order. Before self-attention, an all-to-all gives it all tokens of some heads;
after it, another one gives it all heads of its tokens back (DeepSpeed-Ulysses, arXiv 2309.14509). Tokens and heads are
cut as evenly as whole numbers allow, so neither must be a multiple of the number of ranks. A rank sees the whole grid
for its heads, so block means, selection and attention are the same as on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def cuts(total: int, parts: int) -> list[slice]:
    """Divide 0 ... total - 1 into contiguous parts whose lengths differ by at most one."""
    ends = [total * number // parts for number in range(parts + 1)]
    return [slice(*ends[number : number + 2]) for number in range(parts)]


class Share:
    """The share of one process that does all the work: it exchanges nothing.

    tokens: this rank's tokens, in the order in which the forward keeps them. heads: its heads.
    """

    def __init__(self, tokens: int, heads: int) -> None:
        self.tokens, self.heads = slice(0, tokens), slice(0, heads)

    def first_tokens(self, count: int) -> int:
        """This rank's tokens among the first `count` of all."""
        return min(max(count - self.tokens.start, 0), self.tokens.stop - self.tokens.start)

    def heads_from_tokens(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin to exchange x, [B, own tokens, all heads, D]. The result waits, and returns [B, all tokens, own heads,
        D]. Work that is queued in between overlaps with the exchange."""
        return lambda: x

    def tokens_from_heads(self, x: Tensor) -> Tensor:
        """The way back: [B, all tokens, own heads, D] to [B, own tokens, all heads, D]."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The tokens of all ranks, on every rank: [B, own tokens, C] to [B, all tokens, C]."""
        return x


class SequenceParallel:
    """The ranks that share the tokens of one forward pass.

    group: their process group; None for this process alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)

    def share(self, tokens: int, heads: int) -> Share:
        """This rank's share of a forward pass. Raises ValueError if there are fewer tokens or heads than ranks."""
        if self._group is None or self.size == 1:
            return Share(tokens, heads)
        if min(tokens, heads) < self.size:
            raise ValueError(
                f"{self.size} GPUs cannot share {tokens} tokens and {heads} heads: each needs one of both; use at most "
                f"{min(tokens, heads)}"
            )
        return _Exchange(self._group, tokens, heads)


ALONE = SequenceParallel()


class _Exchange(Share):
    def __init__(self, group: dist.ProcessGroup, tokens: int, heads: int) -> None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self._group = group
        self._tokens, self._heads = ([part.stop - part.start for part in cuts(n, size)] for n in (tokens, heads))
        self.tokens, self.heads = cuts(tokens, size)[rank], cuts(heads, size)[rank]
        self._own_tokens, self._own_heads = self._tokens[rank], self._heads[rank]

    def heads_from_tokens(self, x: Tensor) -> Callable[[], Tensor]:
        batch, _, _, dim = x.shape
        shapes = [(batch, tokens, self._own_heads, dim) for tokens in self._tokens]
        arrive = self._exchange(x.split(self._heads, dim=2), shapes)
        return lambda: _joined(arrive(), dim=1)

    def tokens_from_heads(self, x: Tensor) -> Tensor:
        batch, _, _, dim = x.shape
        shapes = [(batch, self._own_tokens, heads, dim) for heads in self._heads]
        return _joined(self._exchange(x.split(self._tokens, dim=1), shapes)(), dim=2)

    def gather(self, x: Tensor) -> Tensor:
        return gather_uneven(x, self._tokens, 1, self._group)

    def _exchange(
        self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
    ) -> Callable[[], tuple[Tensor, list[Tensor]]]:
        """Send part n to rank n. The result waits, and returns what arrived: one buffer, and its parts of `shapes`."""
        sizes, received = [part.numel() for part in parts], [math.prod(shape) for shape in shapes]
        sent, out = (parts[0].new_empty(sum(counts)) for counts in (sizes, received))
        for place, part in zip(sent.split(sizes), parts, strict=True):
            place.view(part.shape).copy_(part)
        work = dist.all_to_all_single(out, sent, received, sizes, group=self._group, async_op=True)

        def arrive() -> tuple[Tensor, list[Tensor]]:
            work.wait()
            return out, [part.view(shape) for part, shape in zip(out.split(received), shapes, strict=True)]

        return arrive


def _joined(arrived: tuple[Tensor, list[Tensor]], dim: int) -> Tensor:
    buffer, parts = arrived
    if dim == 1 and parts[0].shape[0] == 1:  # tokens of a single row arrive in their order, and need no copy
        return buffer.view(1, -1, *parts[0].shape[2:])
    return torch.cat(parts, dim)


def gather_uneven(x: Tensor, lengths: Sequence[int], axis: int, group: dist.ProcessGroup) -> Tensor:
    """Join the parts of all ranks along an axis, on every rank. lengths: of that axis on each rank.

    Parts travel padded to the longest, because an all-gather wants equal ones.
    """
    first = x.transpose(0, axis)
    padded = first.new_zeros(max(lengths), *first.shape[1:])
    padded[: first.shape[0]] = first
    out = padded.new_empty(len(lengths) * padded.shape[0], *padded.shape[1:])
    dist.all_gather_into_tensor(out, padded, group=group)
    parts = out.unflatten(0, (len(lengths), -1)).unbind(0)
    whole = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    return whole.transpose(0, axis)
