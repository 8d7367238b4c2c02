"""The value that says how blocks are chosen, and that nobody else draws conclusions from its numbers."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bsa import BlockLayout, BSAConfig, Grid, Selector, select_blocks
from bsa.selection import pool, select_pooled
from bsa.selectors import MASS, SCORES, TOP_K, TOP_K_AND_MASS, Scores

ROOT = Path(__file__).resolve().parents[1]
RULES = [
    pytest.param(Selector(0.75), TOP_K, True, id="top-k"),
    pytest.param(Selector(None, 0.6), MASS, False, id="mass"),
    pytest.param(Selector(0.75, 0.6), TOP_K_AND_MASS, False, id="both"),
]


@pytest.mark.parametrize(("selector", "rule", "uniform"), RULES)
def test_what_it_promises_is_what_a_selection_keeps(selector, rule, uniform):
    assert (selector.rule, selector.uniform) == (rule, uniform)
    config = BSAConfig(selector.sparsity, selector.cdf_threshold, (2, 2, 2), (2, 2, 2))
    layout = BlockLayout(Grid(4, 6, 6), config.chunk_q)
    torch.manual_seed(0)
    # From flat to peaked attention, so that a threshold keeps few blocks in some rows and many in others.
    spread = torch.tensor([0.01, 1.0, 3.0]).view(3, 1, 1, 1)
    q, k = (torch.randn(1, 3, layout.blocks.volume, 8, 16) * spread for _ in "qk")
    counts = select_blocks(q, k, layout, layout, config, 0.25).counts
    blocks = layout.blocks.volume
    assert counts.min() >= selector.least(blocks)
    assert (counts.unique().numel() == 1) == uniform
    assert counts.double().mean() <= selector.most(blocks) + 1
    if uniform:
        assert selector.kept(blocks) == selector.least(blocks) == selector.most(blocks) == counts.max()
    else:
        assert selector.kept(blocks) is None


@pytest.mark.parametrize(("selector", "rule", "uniform"), RULES)
def test_a_plan_repeats_what_the_selector_says(selector, rule, uniform):
    config = BSAConfig(selector.sparsity, selector.cdf_threshold, (4, 4, 8), (2, 2, 4))
    assert config.selector == selector
    plan = config.blocks(Grid(5, 9, 17))
    key_blocks = plan.k_blocks.volume
    assert (plan.min_kept, plan.kept) == (selector.least(key_blocks), selector.kept(key_blocks))
    assert plan.work.block_pairs == plan.q_blocks.volume * key_blocks == 2 * 3 * 3 * 3 * 5 * 5
    assert plan.work.cell_pairs == 0
    by_cells = replace(config, selection="cells").blocks(Grid(5, 9, 17)).work
    assert by_cells == (plan.work.block_pairs, 2 * 3 * 3 * (2 * 2 * 4) * 3 * 5 * 5 * (1 * 1 * 2))


@pytest.mark.parametrize(
    ("sparsity", "threshold", "words"),
    [
        pytest.param(0.75, None, "3", id="top-k"),
        pytest.param(None, 0.5, "as many as the cdf threshold needs", id="mass"),
        pytest.param(0.75, 0.5, "as many as the cdf threshold needs", id="both"),
    ],
)
def test_words_for_people(sparsity, threshold, words):
    assert Selector(sparsity, threshold).kept_words(12) == words
    assert all(scores.name == name and scores.label for name, scores in SCORES.items())


@pytest.mark.parametrize(
    ("selector", "options"),
    [
        (Selector(0.1 + 0.2), ["--sparsity=0.30000000000000004", "--cdf-threshold=none", "--selection=mean"]),
        (Selector(None, 0.5, "cells"), ["--sparsity=none", "--cdf-threshold=0.5", "--selection=cells"]),
    ],
)
def test_words_of_the_command_line(selector, options):
    assert selector.options == options


def test_the_default_way_to_score_is_written_nowhere():
    """Files, logs and code to copy from before it had a name stay what they were, byte for byte."""
    config = BSAConfig(0.5, None, (2, 2, 4), (2, 2, 4))
    grid = "Grid(t=2, h=2, w=4)"
    assert repr(config) == f"BSAConfig(sparsity=0.5, cdf_threshold=None, chunk_q={grid}, chunk_k={grid})"
    assert json.dumps(config.to_bsa_params()) == (
        '{"sparsity": 0.5, "cdf_threshold": null, "chunk_3d_shape_q": [2, 2, 4], "chunk_3d_shape_k": [2, 2, 4]}'
    )
    assert eval(repr(config), {"BSAConfig": BSAConfig, "Grid": Grid}) == BSAConfig(**config.arguments) == config
    named = {"selection": "mean"} | config.to_bsa_params()
    assert config == replace(config, selection="mean") == BSAConfig.from_bsa_params(named)


@pytest.mark.parametrize("name", ["median", None, 3, ["mean"]])
def test_an_unknown_way_to_score_is_refused_with_those_that_exist(name):
    with pytest.raises(ValueError, match=rf"selection must be one of .*mean.*got {re.escape(repr(name))}"):
        BSAConfig(selection=name)
    with pytest.raises(ValueError, match="selection must be one of"):
        BSAConfig.from_bsa_params({"selection": name})


def test_rounding_never_loses_a_block():
    for blocks in range(1, 400):
        for kept in range(1, blocks + 1):
            assert Selector(1 - kept / blocks).least(blocks) == kept
    assert math.isclose(Selector(None, 0.25).most(12), 3)


def test_a_new_score_runs_before_it_has_a_kernel(monkeypatch):
    """It is no case of cells, and the fused kernel, which ranks means, is not asked to rank by it."""
    monkeypatch.setitem(SCORES, "new", Scores("new", "by something new"))
    config = BSAConfig(0.75, None, (2, 2, 2), (2, 2, 2), selection="new")
    layout = BlockLayout(Grid(4, 6, 6), config.chunk_q)
    q, k = (torch.randn(1, 2, layout.blocks.volume, 8, 16) for _ in "qk")
    pooled = pool(q, layout, config), pool(k, layout, config)
    assert pooled[0].shape == (1, 2, layout.blocks.volume, 16)  # means of blocks, not of cells
    selections = [select_pooled(*pooled, layout, layout, config, 0.25, fused=fused) for fused in (False, True)]
    assert torch.equal(selections[0].indices, selections[1].indices)
    assert BSAConfig.from_bsa_params(config.to_bsa_params()) == config
    assert config.blocks(layout.grid).work.cell_pairs == 0


def test_only_the_selector_knows_what_its_numbers_mean():
    """What a threshold or a score implies is asked of a Selector; a new one would otherwise be forgotten in some file.
    """
    infers = re.compile(r"\.cdf_threshold is (not )?None|\b(scores|selection) [!=]= (DEFAULT_SCORES|CELLS|['\"])")
    files = [path for room in ("bsa", "pipeline") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 20
    found = [str(path) for path in files if path.name != "selectors.py" and infers.search(path.read_text("utf-8"))]
    assert found == [], f"ask `config.selector` instead (uniform, kept, rule, by_cells) in {found}"
