from __future__ import annotations

import numpy as np
from dat_stream import packed
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.errors import CorruptError
from facescale.models.dlib_dat import DatReader

ints = st.one_of(st.integers(-300, 300), st.integers(-(2**63 - 1), 2**63 - 1))


@settings(deadline=None)
@given(st.lists(ints, max_size=2000))
def test_runs_of_ints_come_back(values: list[int]) -> None:
    reader = DatReader(b"".join(map(packed, values)))
    assert reader.ints().tolist() == values
    reader.expect_end()


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=600))
def test_any_bytes_are_read_alike_by_both_ways_or_refused_by_both(data: bytes) -> None:
    single = DatReader(data)
    expected = []
    refused = False
    while single.remaining and not refused:
        try:
            expected.append(single.int_())
        except CorruptError:
            refused = True
    try:
        found = DatReader(data).ints()
    except CorruptError:
        assert refused
    else:
        assert not refused
        np.testing.assert_array_equal(found, expected)
