"""Models on the Hugging Face hub: pushed whole, fetched only when asked, and checked like any other folder."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from huggingface_hub import HfApi, ModelHubMixin, snapshot_download

from stexpr.errors import ModelError, StexprError
from stexpr.models.export.files import CARD, CONFIG, GENES, INTERVALS, MAX_MEMBERS, MEMBERS, REFERENCE, WEIGHTS

__all__ = ["HubModel", "located"]

Own = TypeVar("Own", bound="HubModel")

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REASONS: Final = {
    401: "there is no such repository, or it is not open to all; check the name, and log in (`hf auth login`, or HF_TOKEN)",
    403: "this account may not do that; ask the owner for access, or take a token that may write",
    404: "there is no such repository or revision, or this account may not see it; check the name",
    429: "too many requests; wait some minutes",
}


class HubModel(ModelHubMixin):
    """What a model needs to live on the hub; the mixin's own configuration and card are left to ours."""

    # anything but None or {}: the mixin then neither collects a configuration of its own nor writes one
    _hub_mixin_config = {"library_name": "stexpr"}

    # set by the module that knows the format, so that this one need not
    _read: ClassVar[Callable[[Path], Any]]
    _write: ClassVar[Callable[[Any, Path], None]]

    def save(self, folder: str | Path) -> None:
        """Write the model with all that came with it, as `load_model` reads it; the files keep their hash.

        Raises:
            ModelError: The folder holds another library's model.
            DataError: The folder cannot be written.
        """
        type(self)._write(self, Path(folder))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Do as `save` does, under huggingface_hub's name; its own takes an earlier `config.json` away first.

        Raises:
            ModelError: An option of the mixin that has no meaning here, or as `save`.
            DataError: The folder cannot be written.
        """
        if given := [name for name, value in options.items() if value is not None]:
            raise ModelError(f"save_pretrained of a stexpr model has no {', '.join(given)}; call save, or push_to_hub")
        self.save(save_directory)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        branch: str | None = None,
        commit_message: str = "Push a stexpr model",
        create_pr: bool = False,
    ) -> str:
        """Upload the model to a repository of the hub, which is made if need be.

        Files of an earlier model there that this one does not have are taken away; other files stay.

        Args:
            repo_id: OWNER/NAME.
            private: Of a repository that is new. One that exists stays as visible as it is.
            token: Allowed to write; by default what `hf auth login` or HF_TOKEN left.
            branch: By default `main`.
            commit_message: Of the commit.
            create_pr: Open a pull request instead of committing.

        Returns:
            Address of the commit.

        Raises:
            ModelError: The hub refuses, or cannot be reached.
        """
        # not the mixin's own, which makes the repository before the files and leaves them behind where it is refused
        with tempfile.TemporaryDirectory() as folder, _answered(f"push to {repo_id}", token):
            self.save(folder)
            hub = HfApi(token=token)
            commit = hub.upload_folder(
                repo_id=hub.create_repo(repo_id, private=private, exist_ok=True).repo_id,
                folder_path=folder,
                revision=branch,
                commit_message=commit_message,
                create_pr=create_pr,
                delete_patterns=file_names(),
            )
            return str(commit.commit_url)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Own],
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Own:
        """Load a model from the hub, downloading what is not in the cache yet, or from a folder.

        Args:
            source: OWNER/NAME, or a folder.
            revision: Branch, tag or commit; by default the latest of `main`.
            token: For a private repository; by default what `hf auth login` or HF_TOKEN left.
            cache_dir: By default huggingface_hub's own.
            force_download: Fetch again what is in the cache.
            local_files_only: Ask no server.

        Raises:
            ModelError: The hub refuses or cannot be reached, or what came is no model, or not the one that was pushed.
        """
        if Path(source).is_dir():
            folder = located(Path(source), revision=revision, download=False)
        else:
            with _answered(f"fetch {source}", token):
                folder = Path(
                    snapshot_download(
                        str(source),
                        revision=revision,
                        token=token,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        allow_patterns=file_names(),
                    )
                )
        model: Own = cls._read(folder)
        return model


def located(source: str | Path, *, revision: str | None, download: bool) -> Path:
    """Return the folder of a model: the one named, or where the cache keeps a repository of the hub.

    Args:
        source: A folder; or OWNER/NAME, where no such folder exists. A `Path` is always a folder.
        revision: Of the repository.
        download: Whether the hub may be asked; else only what was downloaded before is found.

    Raises:
        ModelError: A revision of a folder, or a repository that is not in the cache and must not be downloaded or cannot be.
    """
    folder = Path(source)
    if folder.exists() or not isinstance(source, str) or not _REPOSITORY.fullmatch(source):
        if revision is not None:
            raise ModelError(f"{source} is a folder and has no revision {revision!r}; only a repository of the hub has")
        return folder
    try:
        with _answered(f"fetch {source}", None):
            return Path(
                snapshot_download(source, revision=revision, local_files_only=not download, allow_patterns=file_names())
            )
    except ModelError as err:
        if download:
            raise
        raise ModelError(
            f"there is no folder {source}, and no model {source} in the local cache of the hub; check the path, or allow "
            f"the download with load_model({source!r}, download=True)"
        ) from err


def file_names() -> list[str]:
    """Return every name a file of a model can have; nothing else is pushed, fetched or taken away."""
    own = (CONFIG, CARD, WEIGHTS, GENES, INTERVALS, REFERENCE)
    return [*own, *(f"{MEMBERS}/{i}/{name}" for i in range(MAX_MEMBERS) for name in own)]


@contextmanager
def _answered(task: str, token: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub and the network raise into one line without the token.

    Raises:
        ModelError: The hub refuses or cannot be reached, or the token cannot be one.
    """
    if token is not None and not re.fullmatch(r"\S+", token):  # what sends it would print it in its complaint
        raise ModelError(f"cannot {task}: the token is empty or holds a blank or line break; copy it again")
    try:
        yield
    except StexprError:
        raise
    except Exception as err:  # huggingface_hub, the network and the disk each raise their own
        status = _status(err)
        text = " ".join(f"{err} {err.__cause__ or ''}".split())[:300] or type(err).__name__
        reason = _REASONS.get(status or 0) or (f"it answered {status}; try again later" if status else text)
        raise ModelError(f"cannot {task}: {reason}") from err


def _status(err: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, or behind what caused it."""
    while err is not None:
        status = getattr(getattr(err, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        err = err.__cause__ or err.__context__
    return None
