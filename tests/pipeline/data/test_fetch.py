"""Files from a server that breaks off, moves, lies, and says no."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fullres.pipeline.data import fetch as fetching
from fullres.pipeline.data.fetch import FetchError, fetch, place_of

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """`content` at any address. `breaks`: after so many bytes of each answer it hangs up, as long as there
    are some in the list. `asked`: the ranges that it was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.breaks, self.asked, self.statuses, self.chunked = [], [], [], False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/models/a%20network.pth"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/models/a%20network.pth")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        server.asked.append(self.headers.get("Range"))
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        begin = 0
        if server.ranges and self.headers.get("Range") and self.headers.get("If-Range") == server.etag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header(
                "Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}"
            )
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        stop = server.breaks.pop(0) if server.breaks else None
        sent = body[:stop]
        if server.chunked:
            if sent:  # an empty chunk is the last one
                self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
            if stop is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)
        if stop is not None:
            self.close_connection = True
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "_PAUSE", 0.0)
    monkeypatch.setattr(fetching, "_PIECE", 1000)
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def left(address):
    """Files beside the fetched one, but for the lock."""
    place = place_of(address)
    return sorted(p.name for p in place.parent.glob("*") if not p.name.endswith(".lock"))


def test_is_fetched_once_and_told_of(server):
    told = []
    path = fetch(server.address, SHA256[:8], lambda *done: told.append(done))
    assert path.name == "a network.pth"
    assert path.read_bytes() == CONTENT
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(server.address, SHA256) == path
    assert server.asked == [None]
    assert left(server.address) == ["a network.pth"]


@pytest.mark.parametrize("chunked", [False, True])
def test_goes_on_after_breaks(server, chunked):
    server.breaks, server.chunked = [1000, 300_000, 0, 1000], chunked
    assert fetch(server.address, SHA256).read_bytes() == CONTENT
    assert server.asked[0] is None
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in server.asked[1:]]
    assert starts == [1000, 301_000, 301_000, 302_000]


def test_goes_on_in_another_run(server):
    """Whose process was ended."""
    server.breaks = [1000] + [0] * 10
    with pytest.raises(FetchError, match="the server cannot be reached, or broke off; "):
        fetch(server.address)
    assert not place_of(server.address).exists()
    server.breaks, server.asked = [], []
    assert fetch(server.address).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize(
    "change", [{"etag": '"two"'}, {"etag": None}, {"etag": 'W/"one"'}, {"ranges": False}]
)
def test_another_file_is_not_put_behind_the_part_of_one(server, change):
    server.breaks = [1000] + [0] * 10
    with pytest.raises(FetchError):
        fetch(server.address)
    server.breaks, server.content = [], CONTENT[::-1]
    for name, value in change.items():
        setattr(server, name, value)
    assert fetch(server.address).read_bytes() == CONTENT[::-1]


def test_without_a_name_of_its_version_it_begins_anew(server):
    server.etag, server.breaks = None, [1000]
    assert fetch(server.address).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_part_that_is_all_of_it_begins_anew(server):
    """The process was ended before it renamed it."""
    fetch(server.address)
    place = place_of(server.address)
    place.rename(place.with_name(f".{place.name}.part"))
    place.with_name(f".{place.name}.version").write_text('"one"')
    assert fetch(server.address, SHA256).read_bytes() == CONTENT


def test_what_has_another_digest_is_not_kept(server):
    with pytest.raises(
        FetchError, match=r"the SHA-256 of what came is [0-9a-f]{8}..., not 00000000...: another"
    ):
        fetch(server.address, "00000000")
    assert left(server.address) == []


def test_a_file_put_there_is_checked_too(server):
    place = place_of(server.address)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"another")
    with pytest.raises(FetchError, match=r"its SHA-256 is [0-9a-f]{8}..., not .*: remove it"):
        fetch(server.address, SHA256[:8])
    assert fetch(server.address).read_bytes() == b"another"
    assert server.asked == []


def test_is_followed_where_it_has_moved(server):
    address = server.address.replace("/models/", "/moved/")
    server.breaks = [1000]
    assert fetch(address, SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_a_server_that_says_no_is_asked_once(server):
    server.statuses = [404]
    with pytest.raises(FetchError, match=r"^http://.*/models/a%20network.pth: the server says 404"):
        fetch(server.address)
    assert len(server.asked) == 1
    assert left(server.address) == []


def test_a_server_that_is_busy_is_asked_again(server):
    server.statuses = [503, 429, 500]
    assert fetch(server.address).read_bytes() == CONTENT
    server.statuses = [503] * 5
    with pytest.raises(FetchError, match="the server says 503"):
        fetch(server.address + "2")


def test_offline_is_one_line_that_says_where_the_file_may_be_put(server, monkeypatch):
    server.shutdown()
    server.server_close()
    waited = []
    monkeypatch.setattr(fetching, "_PAUSE", 1.0)
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    with pytest.raises(FetchError) as error:
        fetch(server.address)
    assert waited == [1]  # no longer where nothing ever answered
    assert "\n" not in str(error.value)
    assert str(place_of(server.address)) in str(error.value)


def test_a_slow_server_is_waited_for_so_long(server, monkeypatch):
    monkeypatch.setattr(fetching, "_TIMEOUTS", (1, 0.1))
    held = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: held.wait(20))
    with pytest.raises(FetchError, match="the server does not answer"):
        fetch(server.address)
    held.set()


def test_several_that_want_it_fetch_it_once(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(server.address))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in found] == [True] * 4
    assert server.asked == [None]
