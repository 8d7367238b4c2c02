"""Settings of a sweep as people write them."""

from __future__ import annotations

import pytest

from bsa import Grid
from pipeline import Axis
from pipeline.sweeps.sweep_axes import parse_axis


class TestAxis:
    @pytest.mark.parametrize(
        ("text", "values", "shown"),
        [
            pytest.param("sparsity=0.5, .75,0.9375", (0.5, 0.75, 0.9375), ["0.5", "0.75", "0.9375"], id="sparsity"),
            pytest.param("selection=mean, cells", ("mean", "cells"), ["mean", "cells"], id="selection"),
            pytest.param("dense-layers=0,2", (0, 2), ["0", "2"], id="dense layers"),
            pytest.param("cdf-threshold=1", (1.0,), ["1"], id="threshold"),
            pytest.param("seed=1,9007199254740993", (1, 2**53 + 1), ["1", "9007199254740993"], id="long seed"),
            pytest.param("steps=8.0;16", (8, 16), ["8", "16"], id="semicolons"),
            pytest.param(
                "chunk=4x4x4, 2X4x8/4×4×4",
                ((Grid(4, 4, 4), Grid(4, 4, 4)), (Grid(2, 4, 8), Grid(4, 4, 4))),
                ["4x4x4", "2x4x8/4x4x4"],
                id="chunks",
            ),
        ],
    )
    def test_text(self, text, values, shown):
        axis = parse_axis(text)
        assert axis.values == values
        assert [axis.text(index) for index in range(len(values))] == shown

    def test_sequences(self):
        assert Axis.of("sparsity", [0, 0.5]).values == (0, 0.5)
        assert Axis.of("chunk", ["4x4x4", [2, 4, 4], [[4, 4, 4], [4, 4, 8]]]).values == (
            (Grid(4, 4, 4), Grid(4, 4, 4)),
            (Grid(2, 4, 4), Grid(2, 4, 4)),
            (Grid(4, 4, 4), Grid(4, 4, 8)),
        )

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            pytest.param("sparsity", "'sparsity' is not NAME=VALUES", id="no values"),
            pytest.param("guidance=1,2", "'guidance' cannot be swept; choose among sparsity,", id="name"),
            pytest.param("seed= , ", "no values to sweep the seed over; give some, such as 1, 2, 3", id="empty"),
            pytest.param("sparsity=0.5,0.50", "sparsity 0.5 is given twice; leave one out", id="twice"),
            pytest.param("sparsity=half", "sparsity 'half' is not a number", id="word"),
            pytest.param("selection=mean,best", "selection 'best' is unknown; choose among mean, cells", id="scores"),
            pytest.param("sparsity=nan", "sparsity nan is not a number", id="nan"),
            pytest.param("steps=2.5", "steps 2.5 is not a whole number; try one such as 2", id="half a step"),
            pytest.param("chunk=4,4,4", "chunk '4' is not three whole numbers; write 4x4x4", id="chunk by commas"),
            pytest.param("chunk=4x4x4/2x2x2/1x1x1", "chunk '4x4x4/2x2x2/1x1x1' is not", id="three chunks"),
            pytest.param("chunk=4x0x4", "chunk '4x0x4' is not three whole numbers", id="chunk 0"),
        ],
    )
    def test_refuses_text(self, text, sentence):
        with pytest.raises(ValueError) as caught:
            parse_axis(text)
        assert str(caught.value).startswith(sentence)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            pytest.param("seed", 3, id="no list"),
            pytest.param("seed", [True], id="bool"),
            pytest.param("sparsity", [None], id="none"),
            pytest.param("sparsity", [{"path": "/etc/passwd"}], id="object"),
            pytest.param("chunk", [[4, 4]], id="two sides"),
            pytest.param("chunk", [[4, 4, 2.5]], id="half a side"),
            pytest.param("chunk", [{"a": 1}], id="chunk object"),
            pytest.param("sparsity", [10**400], id="beyond a float"),
            pytest.param("seed", ["9" * 5000], id="endless digits"),
        ],
    )
    def test_refuses_values(self, name, values):
        with pytest.raises(ValueError, match="is not|are not|is far too large"):
            Axis.of(name, values)
