"""Layerwise offload: the same forward, with the weights of two blocks on the device. Streams and pinning need a GPU."""

import pytest
import torch
from random_dit import random_dit, random_inputs

from pipeline.transformer.fast_forward import fast_forward
from pipeline.weights.fp8 import to_fp8, weight_bytes
from pipeline.weights.offload import Offload


def made(depth, fp8, dtype=torch.float32):
    model = random_dit(depth=depth, dtype=dtype)
    return to_fp8(model) if fp8 else model


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("fp8", [pytest.param(False, id="fp32"), pytest.param(True, id="fp8")])
def test_equals_the_forward_without(depth, fp8):
    model = made(depth, fp8)
    inputs = random_inputs(model, (3, 4, 5))
    expected = fast_forward(model, *inputs, None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    offload = Offload(model, torch.device("cpu"))
    for _ in range(2):  # the second pass finds the places taken by the first one's last blocks
        assert torch.equal(fast_forward(model, *inputs, None, offload=offload), expected)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].float(), value.float()) for name, value in before.items())


def test_two_blocks_are_on_the_device():
    model = made(6, False, torch.bfloat16)
    block = weight_bytes(model.blocks[0])
    offload = Offload(model, torch.device("cpu"))
    # Every tensor begins at a multiple of 256 bytes, which pads each of the block's 26 by less than that.
    assert 2 * block <= offload.device_bytes < 2 * (block + 26 * 256)
    assert offload.host_bytes == 3 * offload.device_bytes
    places = set()
    for number, (current, expected) in enumerate(zip(offload.blocks(), model.blocks, strict=True)):
        assert current is expected
        places.add(current.ffn.w1.weight.untyped_storage().data_ptr())
        others = [other for other in model.blocks if other is not current]
        hosts = {other.ffn.w1.weight.untyped_storage().data_ptr() for other in others}
        assert len(hosts) == 5 and not hosts & places, number
    assert len(places) == 2


def test_a_pass_that_is_broken_off_leaves_the_model_whole():
    model = made(4, False)
    inputs = random_inputs(model, (3, 4, 5))
    expected = fast_forward(model, *inputs, None)
    offload = Offload(model, torch.device("cpu"))
    passing = offload.blocks()
    next(passing), next(passing)
    passing.close()
    assert torch.equal(fast_forward(model, *inputs, None), expected)
    assert torch.equal(fast_forward(model, *inputs, None, offload=offload), expected)
