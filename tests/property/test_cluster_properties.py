"""What holds of clusters for every input: order does not matter, images keep faces apart, the cap holds."""

from __future__ import annotations

import numpy as np
from clustered_people import cluster, partition, simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from facescale.curate.cluster_fit import UNASSIGNED
from facescale.curate.propagate import propagate, separate


@st.composite
def crowds(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Faces of some people, some of them the same picture, on shared images, some below the gate."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    unit, _ = simulate(sizes, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.3, 0.9, 1.4])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    N = len(unit)
    unit[rng.random(N) < draw(st.sampled_from([0.0, 0.2]))] = unit[0]
    return {
        "unit": unit,
        "image": rng.integers(0, draw(st.sampled_from([1, N, 4 * N])), N) << 8,
        "usable": rng.random(N) >= draw(st.sampled_from([0.0, 0.3])),
        "face_id": rng.permutation(N).astype(np.int64) * 256 + 1,
    }


@settings(max_examples=60, deadline=None)
@given(crowds(), st.integers(0, 2**32 - 1), st.sampled_from([3, 50]))
def test_the_order_of_faces_does_not_matter(crowd: dict[str, np.ndarray], seed: int, k: int) -> None:
    # Which of equally similar faces a short list holds goes by their order, as it does in the table of neighbors.
    k = k if len(np.unique(crowd["unit"], axis=0)) == len(crowd["unit"]) else 200
    found = cluster(**crowd, k=k)
    order = np.random.default_rng(seed).permutation(len(crowd["unit"]))
    again = cluster(**{name: column[order] for name, column in crowd.items()}, k=k)
    assert {frozenset(order[list(rows)].tolist()) for rows in partition(again.label)} == partition(
        found.label
    )
    np.testing.assert_allclose(again.confidence, found.confidence[order], atol=1e-3)
    assert again.counts == found.counts


@settings(max_examples=100, deadline=None)
@given(crowds(), st.sampled_from([2, 5, 100_000]))
def test_images_keep_faces_apart_the_cap_holds_and_confidence_is_a_share(
    crowd: dict[str, np.ndarray], max_size: int
) -> None:
    found = cluster(**crowd, max_size=max_size)
    inside = found.label != UNASSIGNED
    pairs = np.column_stack([crowd["image"], found.label])[inside]
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert inside[crowd["usable"]].all()
    used = found.label[inside & crowd["usable"]]
    # Faces below the gate are attached to clusters and never make one; names are 0, 1, 2 …
    np.testing.assert_array_equal(np.unique(found.label[inside]), np.arange(len(np.unique(used))))
    over = np.bincount(found.label[inside]) > max_size
    assert over.sum() <= found.counts["oversized"]
    for label in np.flatnonzero(over):  # only faces as good as identical pass the cap
        held = crowd["unit"][(found.label == label) & crowd["usable"]]
        assert (held @ held.T).min() > 0.999
    assert np.isnan(found.confidence[~inside]).all()
    assert ((found.confidence[inside] >= 0) & (found.confidence[inside] <= 1)).all()


@settings(max_examples=60, deadline=None)
@given(crowds())
def test_faces_below_the_gate_change_nothing_for_the_others(crowd: dict[str, np.ndarray]) -> None:
    usable = crowd["usable"]
    with_all = cluster(**crowd)
    without = cluster(**{name: column[usable] for name, column in crowd.items()})
    assert partition(with_all.label[usable]) == partition(without.label)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(0, 90))
def test_labels_never_leave_a_component(data: st.DataObject, N: int, num_pairs: int) -> None:
    ends = data.draw(arrays.arrays(np.int64, (num_pairs, 2), elements=st.integers(0, N - 1)))
    weights = data.draw(arrays.arrays(np.float32, num_pairs, elements=st.floats(0.0078125, 1, width=32)))
    kept = ends[:, 0] != ends[:, 1]
    rows, columns = ends[kept].T
    graph = coo_array(
        (np.tile(weights[kept], 2), (np.append(rows, columns), np.append(columns, rows))), shape=(N, N)
    ).tocsr()
    labels = propagate(graph)
    component = connected_components(graph, directed=False)[1]
    assert len(np.unique(np.column_stack([labels, component]), axis=0)) == len(np.unique(labels))
    assert (labels >= 0).all() and labels.dtype == np.int32


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.floats(0, 1, width=32)), max_size=40))
def test_separated_faces_are_the_least_supported(rows: list[tuple[int, int, float]]) -> None:
    labels, image = (np.array([row[i] for row in rows], np.int32) for i in (0, 1))
    support = np.array([row[2] for row in rows], np.float32)
    kept, put_out = separate(labels, image.astype(np.int64), support)
    groups = {(label, where) for label, where, _ in rows}
    assert put_out == len(rows) - len(groups)
    sizes = np.bincount(kept, minlength=1)
    for label, where in groups:
        mine = np.flatnonzero((labels == label) & (image == where))
        stayed = [row for row in mine if sizes[kept[row]] > 1]
        assert len(stayed) <= 1
        assert not stayed or support[stayed[0]] == support[mine].max()
