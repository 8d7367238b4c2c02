"""One video on several ranks, over gloo: each gets what one process gets. The cases are in `parallel_ranks.py`."""

import json

import pytest
from parallel_ranks import CASES, SIZES
from programs import run_program

from pipeline.parallel.mesh import mesh_shape, strip_count
from pipeline.parallel.sequence import cuts


@pytest.fixture(scope="module")
def of_each_size(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_program("parallel_ranks.py", folder)
    return {size: json.loads((folder / f"{size}.json").read_text()) for size in SIZES}


@pytest.fixture(params=SIZES, ids=lambda size: f"{size}-ranks")
def found(request, of_each_size):
    """What the ranks of one size found in every case, a list by rank."""
    return of_each_size[request.param]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_has_the_result_of_one_process(found, case):
    # fp32 products of fewer rows may be summed in another order; a wrong order of tokens or heads would be near 1.
    # With 8-bit activations such a sum may round to the neighbouring 8-bit number.
    assert max(rank[case]["error"] for rank in found) < (1e-2 if case == "fp8" else 2e-6)


@pytest.mark.parametrize("case", [name for name, (_, config, _, _) in CASES.items() if config is not None])
def test_every_head_selects_the_blocks_of_one_process(found, case):
    assert all(rank[case]["same_selection"] for rank in found)


def test_ranks_agree_to_the_last_bit(found):
    """All of them take the same step afterwards, so their latents must not drift apart."""
    for case in CASES:
        assert len({rank[case]["error"] for rank in found}) == 1


def test_ranks_skip_the_same_steps(found):
    ran = [rank["teacache"] for rank in found]
    assert 2 < len(ran[0]) < 9 and all(steps == ran[0] for steps in ran)


def test_guidance_rows_on_their_own_ranks(found):
    assert max(rank["guidance"]["error"] for rank in found) < 2e-6


@pytest.mark.parametrize("vae", ["vae", "vae-in-patches"])
@pytest.mark.parametrize("what", ["decode", "encode"])
def test_strips_join_to_the_picture_of_one_process(of_each_size, vae, what):
    found = of_each_size[3]
    # fp32 through 20 convolutions; without the neighbours' rows the edges would be off by a few per cent.
    assert max(rank[vae][what] for rank in found) < 2e-6
    assert all(rank[vae]["restored"] for rank in found)


def test_more_ranks_than_heads_are_refused(found):
    assert all(f"{len(found)} GPUs cannot share 12 tokens and 1 heads" in rank["refusal"]["refused"] for rank in found)


def test_ranks_speak_with_each_other(found):
    size = len(found)
    weights = [1 + rank for rank in range(size)]
    mean = sum(rank * weight for rank, weight in enumerate(weights)) / sum(weights)
    for rank, said in enumerate(one["talk"] for one in found):
        assert said["job"] == {"job": 7} and said["once"] == [[1.5], None]
        assert said["mean"] == pytest.approx(mean) and said["largest"] == size - 1
        assert said["collected"] == ([] if rank else list(range(size)))


def test_an_error_of_one_rank_is_raised_on_all(found):
    """Afterwards they stand at the same point, so they can take another job."""
    for rank in found:
        assert rank["talk"]["raised"] == ["rank 0 cannot", "rank 1 cannot"]
        assert rank["talk"]["settled"] == [False, True]


def test_each_rank_keeps_the_conditioning_frames_for_its_heads(found):
    shares = {2: [1.0] * 2, 3: [0.25, 0.25, 0.5], 4: [0.5] * 4}[len(found)]  # of 4 heads, after guidance
    assert max(rank["cache"]["error"] for rank in found) < 2e-6
    assert [rank["cache"]["kept"] for rank in found] == shares


@pytest.mark.parametrize(
    ("total", "parts", "lengths"),
    [
        pytest.param(32, 3, [10, 11, 11], id="heads-on-three"),
        pytest.param(84480, 6, [14080] * 6, id="704p-on-six"),
        pytest.param(7, 4, [1, 2, 2, 2], id="seven"),
        pytest.param(4, 4, [1, 1, 1, 1], id="one-each"),
    ],
)
def test_cuts(total, parts, lengths):
    slices = cuts(total, parts)
    assert [part.stop - part.start for part in slices] == lengths
    assert [n for part in slices for n in range(total)[part]] == list(range(total))


@pytest.mark.parametrize(
    ("size", "rows", "shape"),
    [(1, 1, (1, 1)), (4, 1, (1, 4)), (2, 2, (2, 1)), (4, 2, (2, 2)), (6, 2, (2, 3)), (3, 2, (1, 3))],
)
def test_guidance_comes_first(size, rows, shape):
    assert mesh_shape(size, rows) == shape


@pytest.mark.parametrize(("size", "rows", "count"), [(4, 88, 4), (3, 3, 3), (4, 3, 1), (1, 6, 1)])
def test_a_picture_of_fewer_rows_than_ranks_is_not_divided(size, rows, count):
    assert strip_count(size, rows) == count
