"""What the processes of tests/test_training_text.py run: they import this file, and so only what it imports."""

import os

import torch

from training.optim import Optimiser
from training.parallel import agree, average, is_first, join, place


def one_of_two(rank: int, folder: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert join() == place() == (rank, 2) and is_first() == (rank == 0)
    tensors = [torch.full((2, 3), float(rank)), torch.tensor([4.0 * rank])]
    average(tensors)
    model = torch.nn.ModuleDict({"blocks": torch.nn.Linear(2, 1)})  # its weight is Muon's, its bias AdamW's
    torch.nn.init.constant_(model["blocks"].weight, float(rank))
    weight = Optimiser([model], 0.1).parameters[0].detach().clone()
    torch.save([*tensors, weight, torch.tensor(agree(10.0 + rank))], f"{folder}/{rank}.pt")


def alone(index: int) -> None:
    os.environ.pop("RANK", None)  # FastVideo sets it in the process of the tests, where it is a group of one
    tensor = torch.tensor([3.0])
    assert join() == place() == (0, 1) and is_first() and agree(7.0) == 7
    average([tensor])
    assert tensor == 3
