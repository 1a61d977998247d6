import pickle

import pytest

from fullres.pipeline.data.storage import SettingsError, Storage
from tests.pipeline.data.object_stores import BUCKETS


@pytest.fixture(scope="module", params=BUCKETS)
def bucket(request):
    with BUCKETS[request.param]() as uri:
        yield uri


@pytest.fixture(scope="module", params=["local", *BUCKETS])
def place(request, tmp_path_factory):
    """Where folders can be, with {} for their name."""
    if request.param == "local":
        yield str(tmp_path_factory.mktemp("place")) + "/{}"
    else:
        with BUCKETS[request.param]() as uri:
            yield uri


@pytest.fixture
def folder(place, tmp_path):
    return Storage(place.format(f"some/{tmp_path.name}"))


def test_what_is_written_is_listed_and_read(folder):
    assert not folder.exists()
    assert folder.names() == []
    folder.write("b/c.txt", b"hello")
    folder.write("a.txt", b"")
    folder.write("b/c.txt", b"hello again")
    assert folder.exists()
    assert folder.names() == ["a.txt", "b/c.txt"]
    assert folder.names("b") == ["b/c.txt"]
    assert folder.read("b/c.txt") == b"hello again"
    assert folder.read("b/c.txt", 5) == b"hello"
    with folder.open("b/c.txt") as file:
        file.seek(6)
        assert file.read() == b"again"
    with folder.fetch("b/c.txt") as file:
        file.seek(6)
        assert file.read() == b"again"
    assert Storage(folder.locate("b")).read("c.txt") == b"hello again"
    assert pickle.loads(pickle.dumps(folder)).names() == folder.names()
    for _ in range(2):
        folder.remove("b/c.txt")
    assert folder.names() == ["a.txt"]


@pytest.mark.parametrize("at", [".", "some", "/"])
def test_a_relative_folder_is_the_same_one_from_elsewhere(tmp_path, monkeypatch, at):
    (tmp_path / "here/some").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    sent = pickle.dumps(folder := Storage(at))
    monkeypatch.chdir(tmp_path)
    assert folder.location == at  # as messages say it
    assert pickle.loads(sent).path == folder.path


def write_half(folder, name):
    with folder.create(name) as file:
        file.write(b"half")
        raise KeyError


def test_a_file_is_whole_or_absent(folder):
    folder.write("kept.txt", b"before")
    for name in ("kept.txt", "new.txt"):
        with pytest.raises(KeyError):
            write_half(folder, name)
    assert folder.names() == ["kept.txt"]
    assert folder.read("kept.txt") == b"before"


def test_missing_files_are_errors_that_name_them(folder):
    folder.write("there.txt", b"")
    with pytest.raises(OSError, match=r"none\.txt"):
        folder.read("none.txt")
    with pytest.raises(OSError, match=r"none\.txt"), folder.fetch("none.txt"):
        pass


def test_what_a_killed_process_left_is_hidden_and_swept(tmp_path):
    folder = Storage(str(tmp_path))
    (tmp_path / ".part-00001.parquet.1234").write_bytes(b"half")
    assert folder.names() == []
    folder.sweep("", "part-")
    assert not list(tmp_path.iterdir())


def test_unknown_stores_are_named():
    with pytest.raises(OSError, match="ftp://host/folder"):
        Storage("ftp://host/folder")


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(OSError, match="nowhere"):
        Storage(bucket.replace("bucket/", "nowhere/").format("x")).write("a", b"1")


def test_a_folder_is_claimed_for_one_thing(folder):
    settings = {"grid": (4, 6), "model": "a"}
    assert folder.claim("settings.json", settings, "results", {"shards": 7}) == {"shards": 7}
    assert folder.claim("settings.json", settings, "results", {"shards": 9}) == {"shards": 7}
    refused = {
        "model: a there, b now": {**settings, "model": "b"},
        "grid:": {"model": "a"},
        "x: None there, 1 now": {**settings, "x": 1},
    }
    for said, other in refused.items():
        with pytest.raises(SettingsError, match=said):
            folder.claim("settings.json", other, "results", {"shards": 7})
    assert folder.settings("settings.json") == {"grid": [4, 6], "model": "a", "shards": 7}


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"null"])
def test_damaged_settings_are_named(folder, text):
    folder.write("settings.json", text)
    with pytest.raises(SettingsError, match=r"settings\.json is damaged"):
        folder.claim("settings.json", {"a": 1}, "results")
