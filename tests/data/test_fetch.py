import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stexpr.data.cards import DataCard, load_card
from stexpr.data.fetch import fetch, verify
from stexpr.errors import CardError, DataError

CONTENT = {"counts/S1.tsv": b"counts" * 1000, "S1.jpg": b"image"}


def card(content=CONTENT, *, url=None, checked=True, **fields):
    files = [
        {
            "path": path,
            "url": url and f"{url}/{path}",
            "sha256": hashlib.sha256(data).hexdigest() if checked else None,
            "bytes": len(data),
        }
        for path, data in content.items()
    ]
    own = {"name": "mine", "species": "s", "tissue": "t", "technology": "ST", "gene_namespace": "other", "reader": "h5ad"}
    return DataCard.model_validate(own | {"sections": [], "files": files} | fields)


def fill(folder, content=CONTENT):
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mirror(tmp_path):
    return fill(tmp_path / "mirror")


@pytest.fixture
def server(mirror):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(mirror))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_mirror_is_copied_once(tmp_path, mirror):
    seen = []

    def progress(items, label, total=None):
        seen.append((label, total))
        return items

    report = fetch(card(), tmp_path / "a" / "b", source=mirror, progress=progress)
    assert (set(report.fetched), report.present, report.unchecked) == (set(CONTENT), (), ())
    assert everything(tmp_path / "a" / "b") == CONTENT
    again = fetch(card(), tmp_path / "a" / "b", source=mirror, progress=progress)
    assert (again.fetched, set(again.present)) == ((), set(CONTENT))
    assert seen == [("fetching mine", 2), ("fetching mine", 0)]


def test_files_are_downloaded_and_checked(tmp_path, server):
    fetch(card(url=server), tmp_path / "t")
    assert everything(tmp_path / "t") == CONTENT


@pytest.mark.parametrize("changed", [b"imagE", b"longer image"])
def test_an_altered_download_leaves_nothing_half_written(tmp_path, server, mirror, changed):
    (mirror / "S1.jpg").write_bytes(changed)
    with pytest.raises(DataError, match=r"http://127.*S1\.jpg has .* the card says"):
        fetch(card(url=server), tmp_path / "t")
    assert set(everything(tmp_path / "t")) == {"counts/S1.tsv"}


def test_an_address_that_does_not_answer(tmp_path, server):
    content = CONTENT | {"gone.txt": b""}
    with pytest.raises(DataError, match=r"cannot download http://127.*gone\.txt: 404"):
        fetch(card(content, url=server), tmp_path / "t")
    assert everything(tmp_path / "t") == CONTENT


def test_an_altered_mirror_and_an_incomplete_one_are_refused(tmp_path, mirror):
    (mirror / "S1.jpg").write_bytes(b"imagE")
    with pytest.raises(DataError, match=r"S1\.jpg has SHA-256 .* the card says"):
        fetch(card(), tmp_path / "t", source=mirror)
    assert set(everything(tmp_path / "t")) == {"counts/S1.tsv"}
    (mirror / "S1.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 2 files of mine, such as S1\.jpg"):
        fetch(card(), tmp_path / "new", source=mirror)
    assert everything(tmp_path / "new") == {}
    with pytest.raises(DataError, match="is not a folder"):
        fetch(card(), tmp_path / "new", source=tmp_path / "none")


def test_a_damaged_file_is_replaced_and_the_others_stay(tmp_path, mirror):
    target = fill(tmp_path / "t")
    (target / "S1.jpg").write_bytes(b"imagE")
    report = fetch(card(), target, source=mirror)
    assert (report.fetched, report.present) == (("S1.jpg",), ("counts/S1.tsv",))
    assert everything(target) == CONTENT


def test_files_without_checksum_or_address(tmp_path, mirror):
    report = fetch(card(checked=False), tmp_path / "t", source=mirror)
    assert set(report.unchecked) == set(CONTENT)
    with pytest.raises(CardError, match=r"no address for 2 of its files, such as counts/S1\.tsv.*--from"):
        fetch(card(checked=False), tmp_path / "new")


def test_verify_tells_every_file(tmp_path):
    folder = fill(tmp_path / "t")
    assert verify(card(), folder).whole
    assert verify(card(checked=False), folder).states == dict.fromkeys(CONTENT, "no checksum")
    (folder / "S1.jpg").write_bytes(b"imagE")
    (folder / "counts" / "S1.tsv").unlink()
    report = verify(card(), folder)
    assert not report.whole
    assert report.states == {"counts/S1.tsv": "missing", "S1.jpg": "altered"}
    assert report.of("altered") == ["S1.jpg"]
    (folder / "S1.jpg").write_bytes(b"longer image")
    assert verify(card(checked=False), folder).of("altered") == ["S1.jpg"]
    with pytest.raises(DataError, match="no folder"):
        verify(card(), tmp_path / "none")


def test_what_may_not_be_downloaded_says_what_to_do(tmp_path, mirror):
    bound = card(access="license_bound", access_note="ask the authors", url="http://127.0.0.1:1")
    with pytest.raises(CardError, match="mine is bound by its license: ask the authors"):
        fetch(bound, tmp_path / "t")
    assert not (tmp_path / "t").exists()
    fetch(bound, tmp_path / "t", source=mirror)
    for name, message in (("hest", "accept its terms"), ("stnet", "read the terms"), ("synthetic", "stexpr demo")):
        with pytest.raises(CardError, match=message):
            fetch(load_card(name), tmp_path / "t")
        with pytest.raises(CardError, match="lists no files"):
            verify(load_card(name), tmp_path)
    with pytest.raises(CardError, match=r"her2st is bound by its license.*--from DIR"):
        fetch(load_card("her2st"), tmp_path / "t")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, mirror):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write into .*file/t"):
        fetch(card(), tmp_path / "file" / "t", source=mirror)


@pytest.mark.real
@pytest.mark.parametrize("name", ["mob", "her2st"])
def test_the_real_files_are_those_on_the_cards(shared_data, tmp_path, name):
    assert verify(load_card(name), shared_data / name).whole
    fetch(load_card(name), tmp_path / name, source=shared_data / name)
    assert verify(load_card(name), tmp_path / name).whole
