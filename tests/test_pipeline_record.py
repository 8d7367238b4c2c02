"""The attention record against oracles: selections made again from the same tensors, recall from dense fp64 softmax."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from bsa import BlockLayout, BSAConfig, Grid, block_sparse_attention
from pipeline import FromFrames, VideoRequest
from pipeline.cli import main
from pipeline.media.attention_record import AttentionRecord, Sampled, record_path
from pipeline.model.recorder import MANY_BLOCKS, STORED_BYTES, AttentionRecorder
from pipeline.transformer.kept_selections import KeptSelections
from pipeline.transformer.self_attention import attention_for

LAYERS, HEADS, DIM = 3, 2, 8


def request_for(grid, bsa, **changes):
    frames, height, width = 4 * (grid.t - 1) + 1, 16 * grid.h, 16 * grid.w
    values = {"steps": 2, "guidance_scale": 1.0, "fps": 15, **changes}
    return VideoRequest(prompt="-", num_frames=frames, height=height, width=width, bsa=bsa, **values)


def record_random(request, rows=1, **options):
    """A recorder fed with random tensors, as a generation would; gives its record and the tensors by (step, layer)."""
    recorder = AttentionRecorder(request, LAYERS, **options)
    [attend] = attention_for(request.workload, recorder).layers(1, 0, KeptSelections(request.bsa))
    random = torch.Generator().manual_seed(0)
    inputs = {}
    for step in range(request.steps):
        for layer in range(LAYERS):
            shape = (rows, HEADS, request.grid.volume, DIM)
            # neighbours in the video are alike, as in a real one, so that scores are not all the same
            q, k, v = (2 * torch.randn(shape, generator=random).cumsum(2) / 10 for _ in range(3))
            attend(q, k, v, request.grid)
            inputs[step, layer] = q, k, v
    return recorder.record({"torch": torch.__version__}), inputs


def true_block_mass(request, q, k):
    """fp64 softmax mass of every token in every key block, [H, S, NK], of the last row of the batch."""
    probabilities = (q[-1].double() @ k[-1].double().mT / DIM**0.5).softmax(-1)
    layout = BlockLayout(request.grid, request.bsa.chunk_k)
    block = layout.block_of_token(torch.device("cpu"))
    mass = torch.zeros(*probabilities.shape[:2], layout.blocks.volume, dtype=torch.float64)
    return mass.index_add_(-1, block, probabilities)


def conditioned(request, kv_cache):
    """The same request, continuing a clip of 5 frames, which are 2 latent frames."""
    start = FromFrames(video="clip.mp4", cond_frames=5, kv_cache=kv_cache, enhance_hf=False)
    return replace(request, start=start)


@pytest.mark.parametrize("kv_cache", ["device", "off"])
@pytest.mark.parametrize(
    ("grid", "chunk"),
    [
        pytest.param(Grid(6, 4, 4), Grid(2, 2, 2), id="whole-blocks"),
        pytest.param(Grid(5, 3, 5), Grid(4, 2, 2), id="ragged-blocks"),
    ],
)
def test_conditioning_frames_have_blocks_of_their_own(grid, chunk, kv_cache, tmp_path):
    """Selections, density and recall against the operation on the same tensors, and masses over what may be seen."""
    bsa = BSAConfig(0.5, chunk_q=chunk, chunk_k=chunk)
    request = conditioned(request_for(grid, bsa), kv_cache)
    recorder = AttentionRecorder(request, LAYERS)
    [attend] = attention_for(request.workload, recorder).layers(1, 0, KeptSelections(request.bsa))
    given, cached, inputs = 2 * grid.h * grid.w, kv_cache != "off", []
    random = torch.Generator().manual_seed(0)
    for _ in range(request.steps * LAYERS):
        q, k, v = (2 * torch.randn(1, HEADS, grid.volume, DIM, generator=random).cumsum(2) / 10 for _ in range(3))
        attend(q[:, :, given:] if cached else q, k, v, grid, 2)
        inputs.append((q, k, v))
    recorder.record({}).save(tmp_path / "x.npz")
    record = AttentionRecord.load(tmp_path / "x.npz")
    layout = BlockLayout(grid, chunk, 2)
    first, blocks = layout.first.blocks.volume, layout.blocks.volume
    assert record.q_blocks == record.k_blocks == layout.blocks and record.conditioning == 2
    block = layout.block_of_token(torch.device("cpu"))
    for (step, layer), (q, k, v) in zip(np.ndindex(request.steps, LAYERS), inputs, strict=True):
        _, selection = block_sparse_attention(q, k, v, grid, bsa, conditioning=2, return_selection=True)
        mask = selection.mask(blocks)[0]
        scores = q[0].double() @ k[0].double().mT / DIM**0.5
        scores[:, :given, given:] = -np.inf
        seen = mask[:, block][..., block]
        inside = (scores.softmax(-1) * seen).sum(-1)
        pairs = seen[:, given * cached :].double().sum((1, 2)) / torch.isfinite(scores[0, given * cached :]).sum()
        np.testing.assert_allclose(record.density[step, layer], pairs, rtol=1e-6)
        for number in range(blocks):
            if cached and number < first:
                assert not record.masks(step, layer, number).any()
                assert np.isnan(record.recall_of(step, layer, number)).all()
                continue
            np.testing.assert_array_equal(record.masks(step, layer, number), mask[:, number])
            measured, options = record.recall_of(step, layer, number), inside[:, block == number]
            # it is one of the block's tokens, the same for all heads; fp32 against fp64
            assert np.abs(measured - options.numpy().T).max(1).min() < 1e-5
    summary = record.summary()
    assert 0 < summary["recall"] <= 1 and 0 < summary["density"] < 1


SMALL = BSAConfig(sparsity=0.5, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2))
CASES = [
    pytest.param(Grid(4, 4, 6), SMALL, 1, id="whole-blocks"),
    pytest.param(Grid(5, 3, 7), SMALL, 1, id="ragged-blocks"),
    pytest.param(Grid(5, 3, 7), replace(SMALL, chunk_q=Grid(2, 3, 1), chunk_k=Grid(1, 2, 4)), 1, id="unlike-chunks"),
    pytest.param(Grid(4, 4, 4), replace(SMALL, sparsity=None, cdf_threshold=0.6), 1, id="cdf-varying-counts"),
    pytest.param(Grid(3, 5, 3), replace(SMALL, cdf_threshold=0.8), 2, id="both-rules-guided"),
    pytest.param(
        Grid(2, 2, 2), BSAConfig(sparsity=0.0, chunk_q=Grid(9, 9, 9), chunk_k=Grid(9, 9, 9)), 1, id="one-block"
    ),
]


@pytest.mark.parametrize(("grid", "bsa", "rows"), CASES)
def test_kept_blocks_density_and_recall_are_those_of_the_tensors(grid, bsa, rows):
    request = request_for(grid, bsa, guidance_scale=float(rows))
    record, inputs = record_random(request, rows)
    q_layout, k_layout = BlockLayout(grid, bsa.chunk_q), BlockLayout(grid, bsa.chunk_k)
    cpu = torch.device("cpu")
    token_block = q_layout.block_of_token(cpu)
    q_sizes, k_sizes = (layout.sizes(cpu).double() for layout in (q_layout, k_layout))
    counts = set()
    for (step, layer), (q, k, v) in inputs.items():
        _, selection = block_sparse_attention(q, k, v, grid, bsa, return_selection=True)
        mask = selection.mask(k_layout.blocks.volume)[-1]
        mass = true_block_mass(request, q, k)
        # of every token, the mass inside the blocks that its query block keeps
        inside = (mass * mask[:, token_block]).sum(-1)
        for head in range(HEADS):
            for block in range(q_layout.blocks.volume):
                kept = record.kept(step, layer, head, block)
                counts.add(len(kept))
                np.testing.assert_array_equal(kept, np.flatnonzero(mask[head, block]))
                of_tokens = inside[head, token_block == block]
                stored = record.recall_of(step, layer, block)[head]
                # fp32 against fp64; the value is that of one token of the block
                assert (of_tokens - stored).abs().min() < 1e-5
            pairs = q_sizes @ mask[head].double() @ k_sizes
            assert record.density[step, layer, head] == pytest.approx(float(pairs) / grid.volume**2, rel=1e-6)
            blocks = record.block_recall[step, layer, head]
            assert record.recall[step, layer, head] == pytest.approx(np.average(blocks, weights=q_sizes), rel=1e-5)
    if bsa.cdf_threshold is not None:
        assert len(counts) > 1, "every block kept as many: this case tests nothing that top-k does not"
    if not bsa.sparsity and bsa.cdf_threshold is None:
        np.testing.assert_allclose(record.recall, 1, rtol=1e-6)


def test_guided_runs_record_the_conditional_row():
    request = request_for(Grid(4, 4, 4), SMALL, guidance_scale=3.0)
    record, inputs = record_random(request, rows=2)
    q, k, v = inputs[1, 2]
    masks = [
        block_sparse_attention(q[row : row + 1], k[row : row + 1], v[row : row + 1], request.grid, SMALL,
                               return_selection=True)[1].mask(8)[0]
        for row in (0, 1)
    ]  # fmt: skip
    assert not torch.equal(*masks)
    recorded = np.stack([record.masks(1, 2, block) for block in range(8)], axis=1)
    np.testing.assert_array_equal(recorded, masks[1])


def test_where_not_everything_is_stored_recall_is_still_right_on_average():
    """Every cell has a recall; from 16 random tokens of 256 it comes near the mean over all tokens."""
    bsa = BSAConfig(sparsity=0.75, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2))
    request = request_for(Grid(4, 8, 8), bsa, steps=8)
    record, inputs = record_random(request, stored_bytes=3 * 2 * 1 * 32 * 4)
    assert record.sampled == Sampled((0, 4, 7)[: len(record.sampled.steps)], *record.sampled[1:])
    stored = [len(numbers) for numbers in record.sampled]
    assert np.prod(stored) * 32 * 4 <= 3 * 2 * 1 * 32 * 4 and record.selections.nbytes == np.prod(stored) * 32 * 4
    assert not np.isnan(record.recall).any()
    block = BlockLayout(request.grid, bsa.chunk_q).block_of_token(torch.device("cpu"))
    truth, errors = [], []
    for (step, layer), (q, k, v) in inputs.items():
        _, selection = block_sparse_attention(q, k, v, request.grid, bsa, return_selection=True)
        inside = (true_block_mass(request, q, k) * selection.mask(32)[0][:, block]).sum(-1).mean(-1)
        truth.append(inside.numpy())
        errors.append(record.recall[step, layer] - truth[-1])
    # 48 means of 16 (or 32) values in 0 to 1, whose spread is below 0.3
    assert abs(np.mean(errors)) < 4 * 0.3 / (16 * len(errors) * HEADS) ** 0.5
    assert np.std(truth) > 0.005 and np.mean(truth) > 0.3


@pytest.mark.parametrize(
    ("shape", "room", "expected"),
    [
        pytest.param((10, 10, 4), 400, (10, 10, 4), id="all-fit"),
        pytest.param((10, 10, 4), 399, (9, 10, 4), id="one-too-many"),
        pytest.param((50, 48, 32), 308, (6, 7, 7), id="720p"),
        pytest.param((50, 48, 32), 1, (1, 1, 1), id="one"),
        pytest.param((50, 48, 32), 0, (0, 0, 0), id="none"),
    ],
)
def test_sampling_is_bounded_and_spread_evenly(shape, room, expected):
    sampled = Sampled.within(*shape, room)
    assert tuple(map(len, sampled)) == expected
    for numbers, size in zip(sampled, shape, strict=True):
        assert list(numbers) == sorted(set(numbers)) and set(numbers) <= set(range(size))
        if len(numbers) > 1:
            assert (numbers[0], numbers[-1]) == (0, size - 1)
            gaps = np.diff(numbers)
            assert gaps.max() - gaps.min() <= 1


def test_a_720p_video_stays_within_the_bound():
    blocks = Grid(24, 44, 80).blocks(Grid(4, 4, 4)).volume
    one = blocks * -(-blocks // 8)
    sampled = Sampled.within(50, 48, 32, STORED_BYTES // one)
    assert min(map(len, sampled)) >= 6
    assert np.prod([len(numbers) for numbers in sampled]) * one <= STORED_BYTES
    assert blocks <= MANY_BLOCKS  # so that every block has a recall of its own


def test_without_room_for_one_selection_the_maps_remain():
    request = request_for(Grid(4, 4, 4), SMALL)
    record, _ = record_random(request, stored_bytes=7)
    assert record.selections.size == 0 and not np.isnan(record.recall).any()
    with pytest.raises(ValueError, match="step 0 is not stored; the stored steps are none"):
        record.kept(0, 0, 0, 0)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    request = request_for(Grid(4, 4, 4), SMALL)
    torch.manual_seed(5), np.random.seed(5)
    first, _ = record_random(request)
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])
    second, _ = record_random(request)
    np.testing.assert_array_equal(first.block_recall, second.block_recall)


def test_file_round_trip_and_what_cannot_be_read(tmp_path):
    request = request_for(Grid(5, 3, 7), SMALL)
    record, _ = record_random(request)
    path = tmp_path / "video.attention.npz"
    record.save(path)
    loaded = AttentionRecord.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["video.attention.npz"]
    for name in ("selections", "block_recall", "density", "recall"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(record, name))
    assert (loaded.grid, loaded.q_blocks, loaded.sampled) == (request.grid, Grid(3, 2, 4), record.sampled)
    assert VideoRequest.from_dict(loaded.request) == request and loaded.versions == {"torch": torch.__version__}

    with pytest.raises(ValueError, match="step 2 is not stored; the stored steps are 0, 1, counted from 0"):
        loaded.kept(2, 0, 0, 0)
    with pytest.raises(ValueError, match="query block 24 does not exist; use 0 to 23"):
        loaded.kept(0, 0, 0, 24)
    with pytest.raises(ValueError, match="there is no file"):
        AttentionRecord.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("not a record")
    np.savez(tmp_path / "array.npz", density=np.zeros(3))
    np.savez(tmp_path / "newer.npz", about=json.dumps({"format": 3}), **{name: 0 for name in
             ("selections", "block_recall", "density", "recall")})  # fmt: skip
    for name, reason in (("text", "is not an attention record"), ("array", "is not"), ("newer", "has format 3")):
        with pytest.raises(ValueError, match=reason):
            AttentionRecord.load(tmp_path / f"{name}.npz")


@pytest.fixture
def recording(tiny_pipeline):
    tiny_pipeline.record = True
    yield tiny_pipeline
    tiny_pipeline.record = False


@pytest.mark.parametrize("guidance", [pytest.param(1.0, id="plain"), pytest.param(3.0, id="guided")])
def test_recording_changes_no_video(tiny_pipeline, tmp_path, guidance):
    request = tiny_pipeline.info.request("a red circle", bsa=SMALL, guidance_scale=guidance)
    without, expected = tiny_pipeline.generate_frames(request, output=tmp_path / "without.mp4")
    assert not record_path(without.video).exists()
    tiny_pipeline.record = True
    try:
        result, frames = tiny_pipeline.generate_frames(request, output=tmp_path / "with.mp4")
    finally:
        tiny_pipeline.record = False
    np.testing.assert_array_equal(frames, expected)
    record = AttentionRecord.load(tmp_path / "with.attention.npz")
    assert record.recall.shape == (request.steps, 2, 2)
    assert record.density.mean() == pytest.approx(result.density)
    assert VideoRequest.from_dict(record.request) == request and record.versions == result.versions


def test_the_clock_leaves_recording_out(recording, tmp_path, monkeypatch):
    request = recording.info.request("a red circle", bsa=SMALL)
    plain = recording.generate(request, output=tmp_path / "a.mp4").seconds
    monkeypatch.setattr(AttentionRecorder, "seconds", lambda self: 1000.0)
    counted = recording.generate(request, output=tmp_path / "b.mp4").seconds
    # not a measurement: a thousand seconds that never passed are taken off
    assert -1000 < counted["denoise"] < plain["denoise"] - 900 and counted["total"] < plain["total"] - 900
    assert counted["decode"] > 0


def test_dense_videos_have_no_record_and_a_full_disk_costs_only_the_record(recording, tmp_path, monkeypatch, caplog):
    request = recording.info.request("a red circle", bsa=SMALL)
    recording.generate(replace(request, bsa=None), output=tmp_path / "dense.mp4")
    recording.generate(replace(request, num_frames=1), output=tmp_path / "image.mp4")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(AttentionRecord, "save", full)
    with caplog.at_level(logging.WARNING, "pipeline"):
        recording.generate(request, output=tmp_path / "sparse.mp4")
    assert "No space left" in caplog.text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dense.mp4", "image.mp4", "sparse.mp4"]


def test_inspect_prints_the_means_and_writes_them_as_json(tmp_path, capsys):
    record, _ = record_random(request_for(Grid(5, 3, 7), SMALL))
    path = tmp_path / "video.attention.npz"
    record.save(path)
    assert main.main(["inspect", str(path), "--json", str(tmp_path / "report.json")]) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    np.testing.assert_allclose(report["recall_by_layer"], record.recall.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(report["density_by_step"], record.density.mean(axis=(1, 2)), rtol=1e-6)
    assert (report["steps"], report["layers"], report["heads"]) == (2, LAYERS, HEADS)
    rows = [line.split() for line in text.partition("recall, %")[2].partition("\n\n")[0].splitlines()[2:]]
    shown = np.array([[float(cell) for cell in row[1:]] for row in rows[:LAYERS]])
    expected = 100 * record.recall.mean(axis=2).T
    np.testing.assert_allclose(shown, np.column_stack([expected, expected.mean(axis=1)]), atol=0.051)
    assert main.main(["inspect", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert main.main(["inspect", str(tmp_path / "none.npz")]) == 2
    assert "there is no file" in capsys.readouterr().err
