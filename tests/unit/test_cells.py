"""Neighbors by cells, on arrays: against brute force over what each face visits, and the plans around them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cell_samples import ids_of, make_base, oracle, people

from facescale.curate.cells import choose_precision, rank_cells, rank_of_cell, train_cells
from facescale.curate.cells_lists import MAX_LIST, Longer, ragged_table
from facescale.curate.cells_plan import cell_count, choose_method, floor_rate, group_rows, piece_bounds
from facescale.curate.cells_recall import choose_probes, found_edges
from facescale.curate.cells_search import CellSearch
from facescale.errors import UsageError

COUNT, DIM, CELLS = 800, 24, 12


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return people(COUNT, DIM)


@pytest.fixture(scope="module")
def centers(vectors: np.ndarray) -> np.ndarray:
    return train_cells(vectors, CELLS, seed=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("probes", "k"), [(CELLS, 20), (CELLS, 400), (3, 20), (1, 5)])
def test_lists_are_the_best_of_the_cells_visited(
    vectors: np.ndarray, centers: np.ndarray, precision: str, probes: int, k: int
) -> None:
    """With every cell visited they are those of brute force, to the last bit."""
    cells = rank_cells(vectors, centers, probes)
    unit, base = make_base(vectors, cells[:, 0], CELLS, pieces=3)
    found = CellSearch(base, precision).search(ids_of(COUNT), unit, cells, k)
    ids, sims = oracle(unit, cells, k)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.sims, sims)
    assert found.met_self.all()
    assert found.compared == np.diff(base.starts)[cells].sum()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_how_the_work_is_cut_changes_nothing(
    vectors: np.ndarray, centers: np.ndarray, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = rank_cells(vectors, centers, 5)
    unit, base = make_base(vectors, cells[:, 0], CELLS)
    whole = CellSearch(base, precision).search(ids_of(COUNT), unit, cells, 9)
    monkeypatch.setattr("facescale.curate.cells_search._TILE_ROWS", 64)
    monkeypatch.setattr("facescale.curate.cells_search._TILE_COLUMNS", 64)
    monkeypatch.setattr("facescale.curate.cells_search._MAX_KEYS", 500)
    for rows in (slice(0, 500), slice(500, 501), slice(501, COUNT)):
        part = CellSearch(base, precision).search(ids_of(COUNT)[rows], unit[rows], cells[rows], 9)
        np.testing.assert_array_equal(part.ids, whole.ids[rows])
        np.testing.assert_array_equal(part.sims, whole.sims[rows])


def test_a_floor_leaves_out_what_lies_below_and_nothing_else(
    vectors: np.ndarray, centers: np.ndarray
) -> None:
    cells = rank_cells(vectors, centers, CELLS)
    unit, base = make_base(vectors, cells[:, 0], CELLS)
    found = CellSearch(base, "bf16").search(ids_of(COUNT), unit, cells, 300, floor=0.4)
    ids, sims = oracle(unit, cells, 300)
    ids[sims < np.float32(0.4)] = -1
    assert 0 < (ids >= 0).sum() < ids.size / 2
    np.testing.assert_array_equal(found.ids, ids)


def test_similarities_below_zero_and_faces_that_are_in_nobodys_list() -> None:
    """Two opposite crowds: the nearest of a face outside the base is far away."""
    crowd = people(40, 8, spread=0.05, each=40)
    vectors = np.concatenate([crowd, -crowd])
    cells = np.zeros((80, 1), np.uint16)
    unit, base = make_base(vectors, cells[:, 0], 1, present=np.arange(80) >= 40)
    for precision in ("fp32", "bf16"):
        found = CellSearch(base, precision).search(ids_of(80), unit, cells, 7)
        ids, sims = oracle(unit, cells, 7, present=np.arange(80) >= 40)
        assert (found.sims[:40] < -0.9).all() and not found.met_self[:40].any() and found.met_self[40:].all()
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_array_equal(found.sims, sims)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_face_a_thousand_times(precision: str) -> None:
    """Candidates stay bounded, and among equals the smallest ids are listed."""
    vectors = np.repeat(people(1, 16), 1000, axis=0)
    cells = np.zeros((1000, 1), np.uint16)
    unit, base = make_base(vectors, cells[:, 0], 1)
    search = CellSearch(base, precision)
    found = search.search(ids_of(1000), unit, cells, 4)
    expected = [[other for other in ids_of(6).tolist() if other != own][:4] for own in ids_of(1000).tolist()]
    assert found.ids.tolist() == expected
    assert found.met_self.all()


def test_nobody_to_compare_with() -> None:
    unit, base = make_base(people(20, 8), np.zeros(20, int), 2, present=np.zeros(20, bool))
    found = CellSearch(base, "fp32").search(ids_of(20), unit, np.zeros((20, 2), np.uint16), 3)
    assert (found.ids == -1).all() and np.isneginf(found.sims).all() and found.compared == 0


def test_cells_are_ranked_by_their_centers(vectors: np.ndarray, centers: np.ndarray) -> None:
    order = np.argsort(-(vectors.astype(np.float64) @ centers.T.astype(np.float64)), axis=1)
    for probes in (1, 4, CELLS):
        ranked = rank_cells(vectors, centers, probes)
        assert (ranked == order[:, :probes]).mean() > 0.999  # but for what float32 cannot tell apart
    assert ranked.dtype == np.uint16


def test_the_rank_of_a_cell_is_its_place_among_all(vectors: np.ndarray, centers: np.ndarray) -> None:
    order = rank_cells(vectors, centers, CELLS).astype(np.int64)
    rng = np.random.default_rng(0)
    face, place = rng.integers(0, COUNT, 5000), rng.integers(0, CELLS, 5000)
    ranks = rank_of_cell(vectors, face, order[face, place], centers)
    assert (ranks == place).mean() > 0.999


def test_centers_find_what_is_there_and_are_the_same_again() -> None:
    crowds = people(600, 32, spread=0.2, each=100)
    centers = train_cells(crowds, 6, seed=3)
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(centers, train_cells(crowds, 6, seed=3))
    spread_over = train_cells(crowds, 60, seed=1)
    assert len(np.unique(rank_cells(crowds, spread_over, 1))) > 40  # no cell is lost for good
    with pytest.raises(UsageError, match="601 cells cannot be found on 600 faces"):
        train_cells(crowds, 601, seed=0)


def test_the_method_follows_from_numbers() -> None:
    assert choose_method(3_000, 128).method == "exact"
    assert choose_method(0, 128, method="cells").method == "exact"
    assert choose_method(10_000_000, 512, method="exact").method == "exact"
    assert choose_method(1_000_000, 512, device="cuda").method == "exact"
    plan = choose_method(1_000_000, 512)
    assert (plan.method, plan.cells, plan.max_probes) == ("cells", 4096, 1024)
    assert plan.train_size == 32 * 4096
    assert plan.scratch_bytes == 1_000_000 * (4 * 512 + 24)
    assert plan.exact_flops == 2e12 * 512
    assert plan.flops(16) == pytest.approx(2e6 * 512 * (4096 + 16 * 1e6 / 4096))
    assert choose_method(5_000, 64, method="cells").cells == 256
    with pytest.raises(UsageError, match="method 'ivf'"):
        choose_method(5, 64, method="ivf")
    assert cell_count(260_000_000) == 65_536 and cell_count(1) == 1


def test_the_floor_leaves_room_in_a_list_for_more_than_strangers() -> None:
    assert floor_rate(1e-3, 50, 3_000) == 1e-3
    assert floor_rate(1e-3, 50, 1_000_000) * 1_000_000 == pytest.approx(25)


def test_runs_of_cells_fit_the_memory_and_leave_none_out() -> None:
    sizes = np.array([5, 0, 30, 2, 2, 2, 90, 1])
    bounds = piece_bounds(sizes, 10, 2 * 10 * 35)
    assert bounds[0] == 0 and bounds[-1] == 8 and (np.diff(bounds) > 0).all()
    for first, last in itertools.pairwise(bounds):
        assert sizes[first:last].sum() <= 35 or last - first == 1
    assert len(bounds) == 5


def test_groups_fit_the_memory() -> None:
    for memory in (64 << 20, 2 << 30):
        rows = group_rows(512, 50, memory, 10_000_000, 2)
        assert rows * (6 * 512 + 8 * 150) <= memory
    assert group_rows(512, 50, 1, 10, 2) == 1024
    assert group_rows(128, 10, 8 << 30, 100_000, 4) == 12_500  # two for each worker


def test_visits_are_the_fewest_that_meet_the_goal() -> None:
    rng = np.random.default_rng(0)
    ranks, is_edge = rng.geometric(0.2, (200, 9)) - 1, rng.random((200, 9)) < 0.5
    choice = choose_probes(ranks, is_edge, 0.9, 40)

    def recall(probes: int) -> tuple[float, float]:
        found, edges = ((ranks < probes) & is_edge).sum(1), is_edge.sum(1)
        mean = found.sum() / edges.sum()
        return mean, np.sqrt(((found - mean * edges) ** 2).sum()) / edges.sum()

    met = [probes for probes in range(1, 41) if recall(probes)[0] - recall(probes)[1] >= 0.9]
    assert choice.reached and choice.probes == met[0] > 1
    assert (choice.recall, choice.standard_error) == pytest.approx(recall(met[0]), abs=1e-6)
    assert choice.edges == is_edge.sum()
    assert dict(choice.curve)[4] == pytest.approx(recall(4)[0], abs=1e-5)
    far = choose_probes(ranks, is_edge, 0.9, 3)
    assert not far.reached and far.probes == 3


def test_edges_are_counted_above_the_floor_and_ties_at_the_end_of_a_list_are_found() -> None:
    truth_ids = np.array([[1, 2, 3], [4, 5, -1]])
    truth_sims = np.array([[0.9, 0.8, 0.7], [0.9, 0.2, -np.inf]], np.float32)
    found_ids = np.array([[1, 3, 9], [5, -1, -1]])
    found_sims = np.array([[0.9, 0.8, 0.7], [0.2, -np.inf, -np.inf]], np.float32)
    assert found_edges(found_ids, found_sims, truth_ids, truth_sims, 0.5) == (2, 4)
    found_ids[0] = [1, 2, 8]
    assert found_edges(found_ids, found_sims, truth_ids, truth_sims, 0.5) == (3, 4)


def test_rows_with_longer_lists() -> None:
    ids = np.array([256, 512, 768])
    found, sims = (
        np.array([[1, 2], [3, -1], [4, 5]]),
        np.array([[0.9, 0.8], [0.7, -np.inf], [0.6, 0.5]], np.float32),
    )
    longer = Longer(np.array([0, 0, 0]), np.arange(3), np.array([1, 2, 7]), np.float32([0.9, 0.8, 0.75]))
    rows = ragged_table(ids, found, sims, longer, 0.4).to_pylist()
    assert [row["neighbor_ids"] for row in rows] == [[1, 2, 7], [3], [4, 5]]
    assert rows[0]["similarities"] == pytest.approx([0.9, 0.8, 0.75])
    assert [row["saturated"] for row in rows] == [False, False, True]
    many = Longer(
        np.full(MAX_LIST, 2), np.arange(MAX_LIST), np.arange(MAX_LIST), np.full(MAX_LIST, 0.9, np.float32)
    )
    (row,) = ragged_table(ids, found, sims, many, 0.4).to_pylist()[2:]
    assert row["saturated"] and len(row["neighbor_ids"]) == MAX_LIST
    assert ragged_table(ids[:0], found[:0], sims[:0], Longer.none(), 0.4).num_rows == 0


def test_precision_is_float32_where_bfloat16_cannot_tell_similarities_apart() -> None:
    assert choose_precision(128, 0.93, 0.04) == "fp32"
    assert choose_precision(64, 0.3, 0.05) in ("bf16", "fp32")  # whichever this processor is faster at
    with pytest.raises(UsageError, match="precision 'int8'"):
        CellSearch(make_base(people(3, 4), np.zeros(3, int), 1)[1], "int8")
