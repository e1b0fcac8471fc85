"""Files of a cohort: download or copy them, and check that they are the ones the card describes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from stexpr.config.files import hash_file, writable, write_whole
from stexpr.data.cards import CardFile, DataCard
from stexpr.errors import CardError, DataError
from stexpr.types import Progress, silent

FileState: TypeAlias = Literal["ok", "missing", "altered", "no checksum"]

_CHUNK = 1 << 20
_TIMEOUT_S = 60


@dataclass(frozen=True)
class VerifyReport:
    """The state of every file of a card in one folder, in the order of the card.

    `ok`: the checksum is the card's. `no checksum`: the file is there, and its size is the card's where that is known.
    """

    card: str
    folder: Path
    states: dict[str, FileState]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing or altered."""
        return not self.of("missing", "altered")

    def of(self, *states: FileState) -> list[str]:
        """Name the files in one of the states given."""
        return [path for path, state in self.states.items() if state in states]


@dataclass(frozen=True)
class FetchReport:
    """What `fetch` did.

    Attributes:
        folder: Where the files are now.
        fetched: Files downloaded or copied by this call.
        present: Files that were there already, whole.
        unchecked: Of both, the files for which the card has no checksum.
    """

    card: str
    folder: Path
    fetched: tuple[str, ...]
    present: tuple[str, ...]
    unchecked: tuple[str, ...]


def fetch(card: DataCard, target: Path, *, source: Path | None = None, progress: Progress = silent) -> FetchReport:
    """Bring the files of a card into a folder, whole.

    Every file is checked before it takes its place, so an interrupted or failed call leaves no part of a file; files that
    are there and whole stay untouched, and a damaged one is replaced.

    Args:
        card: The cohort.
        target: Folder for the files, made if need be.
        source: A local mirror with the same paths; without one, files are downloaded.
        progress: Shows how far it is.

    Raises:
        CardError: The card lists no files, they may not be downloaded (the message says what to do instead), or one has no
            address.
        DataError: A file is missing in the mirror, cannot be downloaded or is not the one on the card, or the folder cannot
            be written.
    """
    _refuse_unlisted(card)
    if source is None:
        _refuse_download(card)
    elif not source.is_dir():
        raise DataError(f"mirror {source} is not a folder; give the folder that holds {card.files[0].path}")
    with writable(target):
        pass
    present = [file for file in card.files if _state(file, target) in ("ok", "no checksum")]
    needed = [file for file in card.files if file not in present]
    if source is None:
        _refuse_unaddressed(card, needed)
    else:
        _refuse_incomplete(card, needed, source)
    for file in progress(needed, f"fetching {card.name}", len(needed)):
        if source is None:
            _download(file, target / file.path)
        else:
            _copy(file, source / file.path, target / file.path)
    return FetchReport(
        card=card.name,
        folder=target,
        fetched=tuple(file.path for file in needed),
        present=tuple(file.path for file in present),
        unchecked=tuple(file.path for file in card.files if file.sha256 is None),
    )


def verify(card: DataCard, folder: Path, *, progress: Progress = silent) -> VerifyReport:
    """Compare the files in a folder with the card.

    Raises:
        CardError: The card lists no files.
        DataError: There is no such folder, or a file cannot be read.
    """
    _refuse_unlisted(card)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; run `stexpr data fetch {card.name}` first")
    files = progress(card.files, f"verifying {card.name}", len(card.files))
    return VerifyReport(card.name, folder, {file.path: _state(file, folder) for file in files})


def _state(file: CardFile, folder: Path) -> FileState:
    path = folder / file.path
    if not path.is_file():
        return "missing"
    if file.bytes is not None and path.stat().st_size != file.bytes:
        return "altered"
    if file.sha256 is None:
        return "no checksum"
    return "ok" if hash_file(path) == file.sha256 else "altered"


def _refuse_unlisted(card: DataCard) -> None:
    if not card.files:
        todo = card.access_note or "list them under `files` (path, and sha256 to have them checked)"
        raise CardError(f"card {card.name} lists no files: {todo}")


def _refuse_download(card: DataCard) -> None:
    if card.access != "open":
        reason = {"license_bound": "bound by its license", "gated": "gated", "generated": "generated, not downloaded"}
        raise CardError(f"{card.name} is {reason[card.access]}: {card.access_note}")


def _refuse_unaddressed(card: DataCard, files: list[CardFile]) -> None:
    if unknown := [file.path for file in files if file.url is None]:
        raise CardError(
            f"card {card.name} has no address for {len(unknown)} of its files, such as {unknown[0]}; "
            "get them by hand and name their folder with --from"
        )


def _refuse_incomplete(card: DataCard, files: list[CardFile], source: Path) -> None:
    if absent := [file.path for file in files if not (source / file.path).is_file()]:
        raise DataError(
            f"mirror {source} lacks {len(absent)} of the {len(card.files)} files of {card.name}, such as {absent[0]}; "
            "it must hold them under the paths on the card"
        )


def _copy(file: CardFile, source: Path, target: Path) -> None:
    def write(partial: Path) -> None:
        digest = hashlib.sha256()
        try:
            reader = source.open("rb")
        except OSError as err:
            raise DataError(f"cannot read {source}: {err.strerror or err}") from err
        with reader, partial.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        _refuse_altered(file, digest.hexdigest(), partial.stat().st_size, str(source))

    write_whole(target, write)


def _download(file: CardFile, target: Path) -> None:
    import pooch
    import requests

    assert file.url is not None
    url = file.url

    def write(partial: Path) -> None:
        try:
            pooch.HTTPDownloader(timeout=_TIMEOUT_S)(url, str(partial), None)
        except requests.RequestException as err:
            raise DataError(
                f"cannot download {url}: {' '.join(str(err).split())}; try again later, or name a local mirror with --from"
            ) from err
        _refuse_altered(file, hash_file(partial), partial.stat().st_size, url)

    write_whole(target, write)


def _refuse_altered(file: CardFile, sha256: str, size: int, origin: str) -> None:
    if file.bytes is not None and size != file.bytes:
        raise DataError(f"{origin} has {size} bytes, the card says {file.bytes} for {file.path}; get the file again")
    if file.sha256 is not None and sha256 != file.sha256:
        raise DataError(
            f"{origin} has SHA-256 {sha256[:12]}…, the card says {file.sha256[:12]}… for {file.path}; get the file again"
        )
