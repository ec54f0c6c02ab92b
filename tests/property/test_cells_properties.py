"""What holds of lists by cells for any faces: sorted, unique, without the face itself, and of the cells visited."""

from __future__ import annotations

import numpy as np
import pytest
from cell_samples import ids_of, make_base, oracle, people
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.curate.cells import rank_cells, train_cells
from facescale.curate.cells_search import CellSearch


@st.composite
def crowds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(vectors, who may be in lists): few dimensions, some the same picture, all of them far from the center or not."""
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 90))
    rng = np.random.default_rng(seed)
    vectors = people(
        count, draw(st.sampled_from([2, 7, 32])), spread=draw(st.sampled_from([0.1, 1.0])), seed=seed
    )
    vectors[rng.random(count) < draw(st.sampled_from([0.0, 0.3]))] = vectors[0]
    if draw(st.booleans()):
        vectors[:, 0] += 3  # similarities near 1, as some embedders give
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, rng.random(count) >= draw(st.sampled_from([0.0, 0.4]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@settings(max_examples=60, deadline=None)
@given(crowds(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_lists(
    precision: str, crowd: tuple[np.ndarray, np.ndarray], num_cells: int, probes: int, k: int
) -> None:
    vectors, present = crowd
    num_cells = min(num_cells, len(vectors))
    cells = rank_cells(vectors, train_cells(vectors, num_cells, seed=1), min(probes, num_cells))
    unit, base = make_base(vectors, cells[:, 0], num_cells, present=present)
    own = ids_of(len(vectors))
    found = CellSearch(base, precision).search(own, unit, cells, k)
    there = found.ids >= 0
    assert (there[:, :-1] >= there[:, 1:]).all()
    assert np.isneginf(found.sims[~there]).all()
    assert (found.sims[:, :-1] >= found.sims[:, 1:]).all()
    assert not (found.ids == own[:, None]).any()
    assert all(len(np.unique(row[row >= 0])) == (row >= 0).sum() for row in found.ids)
    assert np.isin(found.ids[there], own[present]).all()
    assert found.met_self[present].all()
    ids, sims = oracle(unit, cells, k, present=present)
    np.testing.assert_array_equal(found.sims, sims)
    np.testing.assert_array_equal(found.ids, ids)
