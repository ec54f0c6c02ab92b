"""The lake: lake.yaml, versions, pruning, and replaced images."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import yaml
from lake_samples import commit, new_uri, sample_lake, versions_of, write_plan

from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.lake.ids import make_image_id
from facescale.lake.lake import Lake
from facescale.lake.parts import PartKey, TableVersion


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path):
    return new_uri(request.param, tmp_path)


def test_create_open_pickle(uri):
    with pytest.raises(
        UsageError, match=r"is no lake \(lake\.yaml is missing\); make one with: facescale extract"
    ):
        Lake.open(uri)
    lake = Lake.create(uri)
    assert lake.uri == uri
    content = yaml.safe_load(lake.store.read_bytes("lake.yaml"))
    assert content["format_version"] == 1
    assert content["created_by"].startswith("facescale ")
    with pytest.raises(UsageError, match="is a lake already"):
        Lake.create(uri)
    again = pickle.loads(pickle.dumps(Lake.open_or_create(uri)))
    assert again.uri == uri
    assert again.current("faces") is None
    assert again.current_models("embeddings") == []


def test_current_versions(uri):
    lake = Lake.create(uri)
    faces = TableVersion("faces", "0" * 12)
    one, two = (TableVersion("embeddings", "1" * 12, model) for model in ("zeta", "alpha"))
    lake.set_current([faces, one])
    Lake.open(uri).set_current([two])
    assert lake.current("faces") == faces
    assert lake.current("embeddings", "zeta") == one
    assert lake.current("embeddings") is None
    assert lake.current_models("embeddings") == ["alpha", "zeta"]
    assert lake.current_models("faces") == []
    assert lake.current_versions() == [two, one, faces]
    lake.set_current([TableVersion("faces", "2" * 12)])
    assert lake.current("faces").fingerprint == "2" * 12
    assert lake.current("embeddings", "zeta") == one


def test_another_format_version_tells_both_and_the_remedy(uri):
    lake = Lake.create(uri)
    lake.store.write_bytes("lake.yaml", b"format_version: 2\ncreated_by: facescale 9.1\ncurrent: {}\n")
    for use in (lambda: Lake.open(uri), lambda: Lake.open_or_create(uri), lambda: lake.current("faces")):
        with pytest.raises(MismatchError) as caught:
            use()
        message = str(caught.value)
        assert f"{uri}/lake.yaml has format version 2 (written by facescale 9.1)" in message
        assert "reads format version 1" in message
        assert "make a new lake" in message


@pytest.mark.parametrize(
    "content",
    [
        b"{{{",
        b"\xff\xfe",
        b"",
        b"just text",
        b"current: {}",
        b"format_version: 1\ncurrent: [faces]",
        b"format_version: 1\ncurrent: {faces: {'-': 3}}",
    ],
)
def test_damaged_lake_yaml_names_file_and_remedy(uri, content):
    lake = Lake.create(uri)
    lake.store.write_bytes("lake.yaml", content)
    with pytest.raises(CorruptError, match="delete it and rerun the same command") as caught:
        Lake.open(uri)
    assert f"{uri}/lake.yaml" in str(caught.value)


def test_a_lost_lake_yaml_is_made_again_around_the_parts(uri):
    sample = sample_lake(uri)
    sample.lake.store.delete("lake.yaml")
    lake = Lake.open_or_create(uri)
    assert lake.current_versions() == []
    assert lake.use("faces", "") == sample.versions["faces"]


def test_a_folder_of_photographs_is_refused(uri, tmp_path):
    lake = Lake(Lake.create(uri).store)
    lake.store.delete("lake.yaml")
    lake.store.write_bytes("holiday/1.jpg", b"")
    for make in (Lake.create, Lake.open_or_create):
        with pytest.raises(UsageError, match=r"is no lake and not empty \(it holds 'holiday/1.jpg'\)"):
            make(uri)
    assert not lake.store.exists("lake.yaml")


def test_version_descriptions(uri):
    lake = Lake.create(uri)
    version = TableVersion("faces", "0" * 12)
    assert lake.describe_version(version) is None
    told = {"settings": {"batch": 8}, "revision": 3, "inputs": {"images": "1" * 12}}
    lake.write_version(version, stage="extract", requested={"batch": "auto"}, **told)
    first = lake.describe_version(version)
    assert {key: first[key] for key in ("settings", "revision", "inputs")} == told
    assert first["requested"] == {"batch": "auto"}
    assert (first["table"], first["fingerprint"], first["model"]) == ("faces", "0" * 12, "-")
    lake.write_version(version, stage="other", settings={}, revision=4, inputs={})
    assert lake.describe_version(version) == first
    lake.store.write_bytes("faces/000000000000/_version.json", b"{")
    with pytest.raises(CorruptError, match=r"_version\.json is damaged .*delete it and rerun"):
        lake.describe_version(version)


def test_versions(uri):
    sample = sample_lake(uri)
    other = versions_of("b")["faces"]
    sample.lake.write_version(other, stage="extract", settings={"name": "b"}, revision=1, inputs={})
    found = {info.version: info for info in sample.lake.versions(rows=True)}
    assert set(found) == {*sample.versions.values(), other}
    for table, version in sample.versions.items():
        info = found[version]
        assert info.parts == 4
        assert info.rows == sample.expected(table).num_rows
        assert info.bytes == sum(size for _, size in sample.lake.store.list(version.folder))
        assert info.current
        assert info.settings == {"name": "a"}
        assert info.created.endswith("+00:00")
    assert (found[other].parts, found[other].rows, found[other].current) == (0, 0, False)
    assert all(info.rows is None for info in sample.lake.versions())


def test_use(uri):
    sample = sample_lake(uri)
    lake = sample.lake
    one, two = TableVersion("faces", "abc000000000"), TableVersion("faces", "abd000000000")
    for version in (one, two):
        lake.write_version(version, stage="extract", settings={}, revision=1, inputs={})
    assert lake.use("faces", "abc") == one
    assert lake.current("faces") == one
    assert lake.current("images") == sample.versions["images"]
    with pytest.raises(UsageError, match=r"2 versions of faces match 'ab'; there are: .*abc000000000"):
        lake.use("faces", "ab")
    with pytest.raises(UsageError, match="no version of faces match 'zz'"):
        lake.use("faces", "zz")
    with pytest.raises(UsageError, match=r"no version of embeddings of other match .* there are: none"):
        lake.use("embeddings", "", "other")


def test_prune_keeps_what_current_versions_are_made_of(uri):
    lake = Lake.create(uri)
    names = {letter: letter * 12 for letter in "abcdef"}
    chain = [
        (TableVersion("images", names["a"]), {}),
        (TableVersion("faces", names["b"]), {"images": names["a"]}),
        (TableVersion("embeddings", names["c"], "m"), {"faces": names["b"], "parts": "f" * 12}),
        (TableVersion("index", names["d"], "m"), {"embeddings": names["c"]}),
        (TableVersion("embeddings", names["e"], "old"), {"faces": names["b"]}),
    ]
    for version, inputs in chain:
        lake.write_version(version, stage="s", settings={}, revision=1, inputs=inputs)
    lake.store.write_bytes(f"embeddings/old-{names['e']}/0000000/0000000000.parquet", b"12345")
    lake.set_current([chain[3][0]])
    old = chain[4][0]
    size = sum(size for _, size in lake.store.list(old.folder))
    assert lake.prune(dry_run=True) == [(old.folder, size)]
    assert lake.describe_version(old) is not None
    assert lake.prune(dry_run=False) == [(old.folder, size)]
    assert {info.version for info in lake.versions()} == {version for version, _ in chain[:4]}
    assert lake.prune(dry_run=False) == []


def test_superseded_images(uri):
    lake = Lake.create(uri)
    assert lake.superseded().tolist() == []
    write_plan(lake, 0, [1] * 100)
    write_plan(lake, 1, [500])
    assert lake.superseded().tolist() == []
    # Photo 7 of shard 0 has changed, photo 9 has vanished, and the tar of shard 1 has changed.
    replaced = [make_image_id(0, 7), make_image_id(0, 9), make_image_id(1, 0)]
    write_plan(lake, 2, [1, 0, 300], format=["image", "gone", "tar"], supersedes=replaced)
    expected = [make_image_id(0, 7), make_image_id(0, 9), *make_image_id(1, np.arange(500)).tolist()]
    assert lake.superseded().tolist() == expected
    # Shard 3 replaces the replacement.
    write_plan(lake, 3, [1], supersedes=[make_image_id(2, 0)])
    assert lake.superseded().tolist() == sorted([*expected, make_image_id(2, 0)])
    assert pickle.loads(pickle.dumps(lake)).superseded().tolist() == sorted([*expected, make_image_id(2, 0)])


def test_superseding_what_is_not_there_is_corrupt(uri):
    lake = Lake.create(uri)
    write_plan(lake, 0, [5, 5])
    write_plan(lake, 1, [1], supersedes=[make_image_id(0, 3)])
    with pytest.raises(CorruptError, match="where no source begins"):
        lake.superseded()


def test_version_json_is_plain_json(uri):
    sample = sample_lake(uri, {0: 10})
    text = sample.lake.store.read_bytes(f"{sample.versions['faces'].folder}/_version.json")
    assert json.loads(text)["stage"] == "extract"
    assert text.endswith(b"}\n")


def test_commits_to_other_settings_stand_beside(uri):
    sample = sample_lake(uri, {0: 64})
    before = dict(sample.lake.store.list())
    commit(sample.lake, PartKey(0, 0, 64), versions_of("b"))
    after = dict(sample.lake.store.list())
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 4
