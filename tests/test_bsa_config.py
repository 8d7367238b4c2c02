import json

import pytest

from bsa import BSAConfig, Grid


@pytest.mark.parametrize(
    ("sparsity", "key_blocks", "kept"),
    [
        pytest.param(0.9375, 1350, 84, id="704p"),
        pytest.param(0.9375, 1440, 90, id="720p-ragged"),
        pytest.param(0.9375, 8, 1, id="never-zero"),
        pytest.param(0.9, 10, 1, id="float-below-one"),
        pytest.param(0.8, 10, 2, id="float-below-two"),
        pytest.param(0.7, 10, 3, id="float-below-three"),
        pytest.param(1 - 1 / 3, 300, 100, id="third"),
        pytest.param(0.5, 7, 3, id="floors"),
        pytest.param(0, 7, 7, id="dense"),
        pytest.param(None, 7, 1, id="cdf-only"),
    ],
)
def test_top_k(sparsity, key_blocks, kept):
    assert BSAConfig(sparsity, cdf_threshold=0.9).top_k(key_blocks) == kept


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"sparsity": 1.0}, ["sparsity", "1.0", "0.9375"], id="sparsity-one"),
        pytest.param({"sparsity": -0.1}, ["sparsity", "-0.1"], id="sparsity-negative"),
        pytest.param({"sparsity": float("nan")}, ["sparsity", "nan"], id="sparsity-nan"),
        pytest.param({"sparsity": 10**400}, ["sparsity", "at least 0 and below 1"], id="sparsity-beyond-floats"),
        pytest.param({"sparsity": "0.5"}, ["sparsity", "'0.5'"], id="sparsity-text"),
        pytest.param({"sparsity": True}, ["sparsity", "True"], id="sparsity-bool"),
        pytest.param({"cdf_threshold": 0}, ["cdf_threshold", "above 0"], id="cdf-zero"),
        pytest.param({"cdf_threshold": 1.5}, ["cdf_threshold", "1.5"], id="cdf-above-one"),
        pytest.param({"sparsity": None}, ["both unset", "0.9375"], id="no-rule"),
        pytest.param({"chunk_q": (4, 4, 0)}, ["chunk_q", "(4, 4, 0)", "4,4,4"], id="chunk-zero"),
        pytest.param({"chunk_k": (4, 4)}, ["chunk_k", "(4, 4)"], id="chunk-two-sides"),
        pytest.param({"chunk_k": (4, 4, 2.5)}, ["chunk_k", "2.5"], id="chunk-fraction"),
        pytest.param({"chunk_k": 64}, ["chunk_k", "64"], id="chunk-number"),
        pytest.param({"chunk_k": (4, 4, float("inf"))}, ["chunk_k", "inf"], id="chunk-infinite"),
    ],
)
def test_errors_carry_the_value_and_the_remedy(fields, words):
    with pytest.raises(ValueError, match="(?s).+") as error:
        BSAConfig(**fields)
    assert [word for word in words if word not in str(error.value)] == []


def test_chunks_become_grids():
    config = BSAConfig(chunk_q=[4, 4, 8], chunk_k=(1, 2, 3))
    assert config.chunk_q == Grid(4, 4, 8)
    assert isinstance(config.chunk_q, Grid)
    assert str(config.chunk_k) == "1x2x3"
    assert hash(config) == hash(BSAConfig(chunk_q=(4, 4, 8), chunk_k=(1, 2, 3)))


def test_plan_of_a_ragged_grid():
    plan = BSAConfig(chunk_k=(4, 4, 8)).blocks(Grid(24, 45, 80))
    assert (plan.q_blocks, plan.k_blocks) == (Grid(6, 12, 20), Grid(6, 12, 10))
    assert (plan.ragged_q, plan.ragged_k) == (120, 60)
    assert (plan.kept, plan.min_kept) == (45, 45)
    assert plan.density == 45 / 720


def test_plan_leaves_density_open_when_the_threshold_decides():
    plan = BSAConfig(0.9, cdf_threshold=0.5).blocks((16, 16, 16))
    assert (plan.kept, plan.density, plan.min_kept) == (None, None, 6)


def test_plan_refuses_an_impossible_grid():
    with pytest.raises(ValueError, match="grid"):
        BSAConfig().blocks((0, 4, 4))


def test_bsa_params_round_trip_through_json():
    config = BSAConfig(0.875, 0.9, (4, 4, 8), (2, 4, 4))
    assert BSAConfig.from_bsa_params(json.loads(json.dumps(config.to_bsa_params()))) == config


@pytest.mark.parametrize(
    ("params", "config"),
    [
        pytest.param({}, BSAConfig(), id="empty"),
        pytest.param({"sparsity": 0.5}, BSAConfig(0.5), id="sparsity"),
        pytest.param({"cdf_threshold": 0.8}, BSAConfig(None, 0.8), id="threshold-alone"),
        pytest.param({"sparsity": 0.5, "cdf_threshold": None}, BSAConfig(0.5), id="null-threshold"),
        pytest.param({"sparsity": 0.5, "cdf_threshold": 0.8}, BSAConfig(0.5, 0.8), id="both"),
    ],
)
def test_bsa_params_defaults(params, config):
    assert BSAConfig.from_bsa_params(params) == config


def test_unknown_bsa_params_are_named():
    with pytest.raises(ValueError, match=r"chunk_shape.*chunk_3d_shape_q"):
        BSAConfig.from_bsa_params({"chunk_shape": [4, 4, 4]})


@pytest.mark.parametrize(
    ("schedule", "layers"),
    [
        pytest.param({}, [0, 0, 0], id="none"),
        pytest.param({"dense_steps": 1}, [4, 0, 0], id="steps"),
        pytest.param({"dense_layers": 2}, [2, 2, 2], id="layers"),
        pytest.param({"dense_steps": 2, "dense_layers": 9}, [4, 4, 4], id="more-than-there-are"),
    ],
)
def test_schedule(schedule, layers):
    config = BSAConfig(**schedule)
    assert [config.dense_layers_at(step, 4) for step in range(3)] == layers
    assert config.dense_share(3, 4) == pytest.approx(sum(layers) / 12)
    assert BSAConfig.from_bsa_params(config.to_bsa_params()) == config
    assert eval(repr(config), {"BSAConfig": BSAConfig, "Grid": Grid}) == config


@pytest.mark.parametrize(
    ("schedule", "selects"),
    [
        pytest.param({}, [1, 1, 1, 1, 1], id="always"),
        pytest.param({"select_every": 2}, [1, 0, 1, 0, 1], id="every second"),
        pytest.param({"select_every": 3, "dense_steps": 1}, [1, 1, 0, 0, 1], id="from the first sparse step on"),
        pytest.param({"select_every": 9}, [1, 0, 0, 0, 0], id="once"),
    ],
)
def test_steps_that_select(schedule, selects):
    config = BSAConfig(**schedule)
    assert [config.selects_at(step) for step in range(5)] == [bool(one) for one in selects]
    sparse = selects[config.dense_steps :]
    assert config.select_share(5) == pytest.approx(sum(sparse) / len(sparse))
    assert BSAConfig.from_bsa_params(config.to_bsa_params()) == config


def test_selections_of_unknown_length_are_not_kept():
    with pytest.raises(ValueError, match="select_every 2 keeps the lists .* cdf_threshold .* use sparsity alone"):
        BSAConfig(0.75, cdf_threshold=0.9, select_every=2)
    with pytest.raises(ValueError, match="select_every must be a whole number from 1 on, got 0"):
        BSAConfig(select_every=0)


@pytest.mark.parametrize("count", [-1, 1.0, True, "2", None])
def test_a_schedule_counts_whole_steps(count):
    with pytest.raises(ValueError, match="dense_steps must be a whole number from 0 on"):
        BSAConfig(dense_steps=count)
