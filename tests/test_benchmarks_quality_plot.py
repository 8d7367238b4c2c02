"""The plot of the quality study, from made-up rows."""

from xml.etree import ElementTree

import pytest

from benchmarks import tables

quality_plot = tables.quality_tables.quality_plot
SVG = "{http://www.w3.org/2000/svg}"


def setting(sparsity, psnr, worst, selection="mean", **others):
    chunk = {"chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}
    bsa = {"sparsity": sparsity, "selection": selection, **chunk, **others}
    return {"bsa": bsa, "density": 1 - sparsity, "psnr": psnr, "worst_psnr": worst}


ROWS = [
    {"name": "dense, another kernel", "psnr": 55.0, "worst_psnr": 33.0},
    setting(0.5, 42.0, 20.0),
    setting(0.75, 34.0, 11.0),
    setting(0.5, 44.0, 19.0, "cells"),
    setting(0.75, 33.0, 12.0, "cells"),
    setting(0.9, 22.0, 9.0, "cells", dense_steps=3),  # not one of the lines
]
STUDY = {"device": 'A <"&> B', "date": "2026-01-01T00:00:00", "prompts": 5, "rows": ROWS}


@pytest.mark.parametrize(
    ("points", "best"),
    [
        pytest.param([(0.5, 40), (0.25, 30), (0.1, 20)], [(0.1, 20), (0.25, 30), (0.5, 40)], id="all"),
        pytest.param([(0.5, 30), (0.25, 31)], [(0.25, 31)], id="more pairs and worse"),
        pytest.param([(0.25, 30), (0.25, 31), (0.3, 31)], [(0.25, 31)], id="equals count once"),
    ],
)
def test_front(points, best):
    assert quality_plot.front(points) == best


def test_every_setting_is_a_dot_in_both_halves_and_the_better_is_higher():
    root = ElementTree.fromstring(tables.quality_tables.plot(STUDY))
    dots = [dot for dot in root.iter(SVG + "circle") if dot.get("r") == "2.5"]
    assert len(dots) == 2 * 5
    for half in (dots[:5], dots[5:]):
        said = [float(dot.find(SVG + "title").text.split(": ")[-1].split(" dB")[0]) for dot in half]
        heights = [float(dot.get("cy")) for dot in half]
        assert sorted(range(5), key=lambda dot: -said[dot]) == sorted(range(5), key=lambda dot: heights[dot])
    assert max(float(dot.get("cy")) for dot in dots[:5]) < min(float(dot.get("cy")) for dot in dots[5:])
    words = [text.text for text in root.iter(SVG + "text")]
    assert words.count("means, 4x4x4") == words.count("cells, 4x4x4") == words.count("noise floor") == 2
    assert "cells, 2x2x4" not in words  # nothing was measured of it
