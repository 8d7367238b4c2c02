"""The optimiser: Muon for the matrices of the transformer's blocks, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.parallel import average


def _orthogonalise(g: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to a stack [n, r, c], by five quintic Newton-Schulz steps in bf16."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).type_as(g)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024), scaled to AdamW's update size (arXiv 2502.16982).

    Matrices of one shape are stacked, so a step is a handful of batched products.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        groups: dict[torch.Size, list[nn.Parameter]] = {}
        for p in parameters:
            groups.setdefault(p.shape, []).append(p)
        super().__init__(
            [{"params": ps} for ps in groups.values()], dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without the closure that PyTorch allows
        for group in self.param_groups:
            ps = group["params"]
            grads = torch.stack([p.grad for p in ps])
            state = self.state[ps[0]]
            buffer = state.setdefault("momentum", torch.zeros_like(grads))
            buffer.lerp_(grads, 1 - group["momentum"])
            update = _orthogonalise(grads.lerp(buffer, group["momentum"]))
            rate = group["lr"] * 0.2 * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(ps, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(ps, list(update.unbind(0)), alpha=-rate)


class Optimiser:
    """Muon and AdamW under one learning rate, with gradient clipping and an exponential moving average.

    With several processes (`training.parallel`), each must create its own at the same time, which makes weights equal.
    """

    def __init__(self, modules: list[nn.Module], lr: float, ema: float = 0.999):
        named = [(name, p) for module in modules for name, p in module.named_parameters()]
        matrices = [p for name, p in named if p.ndim == 2 and _is_block_matrix(name)]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parameters = [p for _, p in named]
        average(self.parameters)
        self.muon = Muon(matrices, lr)
        fused = self.parameters[0].is_cuda
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)
        self.base_lr, self.ema_decay = lr, ema
        self.average = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def step(self, scale: float) -> None:
        """One update at `scale` times the base learning rate."""
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = self.base_lr * scale
        average([p.grad for p in self.parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad(set_to_none=False)
        self.adam.zero_grad(set_to_none=False)
        self.steps += 1
        decay = min(self.ema_decay, 1 - 1 / (1 + self.steps / 4))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def load_average(self) -> None:
        """Put the averaged weights into the modules."""
        with torch.no_grad():
            torch._foreach_copy_([*self.parameters], self.average)


def _is_block_matrix(name: str) -> bool:
    # not the text encoder's: T5 has no scale or norm in its attention, and Muon lets scores grow until all is one-hot
    return name.startswith("blocks.") and "adaln" not in name


def trapezoid(progress: float | None, warmup: float = 0.02, decay: float = 0.4) -> float:
    """Learning-rate factor at `progress` in [0, 1]: up, flat, then linearly to nearly zero. Small before the start."""
    if progress is None:
        return 0.05
    return max(0.01, min(1.0, progress / warmup if warmup else 1.0, (1 - progress) / decay if decay else 1.0))
