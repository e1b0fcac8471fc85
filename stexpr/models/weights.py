"""Where the weights of a backbone come from, and that they are its own: safetensors only, nothing fetched without being asked.

A pickle runs whatever its maker put into it, so none is ever opened; `CONVERT` is what its owner can do about it.
"""

import hashlib
import re
from pathlib import Path
from typing import Final

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from stexpr.errors import ModelError
from stexpr.models.encoders import Encoder
from stexpr.models.transformers_layout import check_config, renamed_for_timm

CONFIG: Final = "config.json"
SAFE: Final = "model.safetensors"
PICKLES: Final = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar", ".npz")
CONVERT: Final = (
    'where you trust its maker, convert it once: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.contiguous() for k, v in torch.load('pytorch_model.bin', weights_only=True).items()}, "
    "'model.safetensors')\", and give the result as weights"
)
REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
REBUILT: Final = ("relative_position_index", "attn_mask", "num_batches_tracked", "relative_coords_table")
"""Ends of names of tensors that timm may save, and makes anew where they are missing."""


def hub_file(repository: str, filename: str, *, download: bool, terms: str) -> Path:
    """Return a file of a repository on the Hugging Face hub, from the cache of huggingface_hub.

    Args:
        repository: `OWNER/NAME`, or `OWNER/NAME@REVISION`.
        filename: In the repository.
        download: Fetch it where it is not in the cache.
        terms: License and access, for messages.

    Raises:
        ModelError: It is not in the cache and not to be fetched, or cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError

    if not REPOSITORY.fullmatch(repository):
        raise ModelError(f"{repository!r} is no repository of the Hugging Face hub; write hf-hub:OWNER/NAME")
    name, _, revision = repository.partition("@")
    what = f"{filename} of {repository} ({terms})"
    try:
        return Path(hf_hub_download(name, filename, revision=revision or None, local_files_only=not download))
    except RemoteEntryNotFoundError as err:
        raise ModelError(f"there is no {what}; if the weights are there as a pickle, {CONVERT}") from err
    except GatedRepoError as err:
        raise ModelError(f"{what}: access was not granted; ask for it there, then log in with `hf auth login`") from err
    except Exception as err:  # a lost connection, a repository that is not there, a file not in the cache
        if download:
            raise ModelError(f"{what} cannot be fetched: {one_line(err)}") from err
        raise ModelError(
            f"{what} is not on this machine (HF_HOME, default ~/.cache/huggingface), and nothing is fetched unasked: agree to "
            "its terms there, log in with `hf auth login` where it is gated, and set runtime.download=true once (--download on "
            "the command line); or copy HF_HOME of a machine that has it; or set model.pretrained=false"
        ) from err


def hub_folder(repository: str, *, weights: bool, download: bool) -> Path:
    """Return the folder of a repository in timm's own format, in the cache of huggingface_hub.

    Raises:
        ModelError: As `hub_file`.
    """
    terms = f"license and access: https://huggingface.co/{repository.partition('@')[0]}"
    if weights:
        hub_file(repository, SAFE, download=download, terms=terms)
    return hub_file(repository, CONFIG, download=download, terms=terms).parent


def timm_file(name: str, *, download: bool) -> Path:
    """Return the safetensors file of timm's own weights of an architecture.

    Raises:
        ModelError: timm publishes none, or as `hub_file`.
    """
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.hf_hub_id:
        raise ModelError(f"timm publishes no pretrained weights of {name!r} as safetensors; set model.pretrained=false")
    filename = Path(settings.hf_hub_filename or SAFE).with_suffix(".safetensors").name
    terms = f"the weights of {name!r}; {settings.license or 'license not said'}; https://huggingface.co/{settings.hf_hub_id}"
    return hub_file(settings.hf_hub_id, filename, download=download, terms=terms)


def folder_file(folder: Path) -> Path:
    """Return the weights of a folder in timm's own format.

    Raises:
        ModelError: There are none, or only a pickle.
    """
    if (folder / SAFE).is_file():
        return folder / SAFE
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise ModelError(f"{folder} holds its weights as a pickle only ({pickles[0]}), which is never opened; {CONVERT}")
    raise ModelError(f"{folder} holds no {SAFE}; save it with timm.models.save_for_hf(..., safe_serialization=True)")


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors of a safetensors file.

    Raises:
        ModelError: It is a pickle, not there, or no safetensors file.
    """
    if path.suffix in PICKLES:
        raise ModelError(f"{path} is a pickle, which is never opened; {CONVERT}")
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as err:
        raise ModelError(f"{path} is no safetensors file that can be read: {one_line(err)}") from err


def check_names(network: nn.Module, path: Path) -> None:
    """Refuse a file that lacks a tensor of the network, or has one more; a classifier may be there.

    timm loads what fits and leaves the rest as it was drawn, which is how the weights of another network pass unseen.

    Raises:
        ModelError: The file is of another network, or none.
    """
    there = tensor_names(path)
    own = network.state_dict().keys()
    learned = {*dict(network.named_parameters()), *(name for name in own if name.endswith(("running_mean", "running_var")))}
    classifiers = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    missing = sorted(learned - there)
    surplus = sorted(name for name in there - own if not name.startswith(heads) and not name.endswith(REBUILT))
    if missing or surplus:
        raise ModelError(
            f"{path} is of another network: {_counted(missing, 'missing')}, {_counted(surplus, 'too many')}; name the "
            "architecture it was saved from, or take a folder in timm's own format, which brings its arguments along"
        )


def _counted(names: list[str], word: str) -> str:
    return f"{len(names)} tensors {word}" + (f" (such as {names[0]})" if names else "")


def load_encoder_weights(network: nn.Module, encoder: Encoder, path: Path) -> None:
    """Load the weights of a known encoder, whatever its layout.

    Raises:
        ModelError: The file does not hold them, or its config.json says something else than is known of the encoder.
    """
    tensor_names(path)
    tensors = load_file(path)
    if encoder.layout != "timm":
        check_config(path.with_name(CONFIG), encoder, network)
        tensors = renamed_for_timm(tensors)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as err:  # names and shapes
        raise ModelError(f"{path} does not hold the weights of {encoder.repository}: {one_line(err)}") from err


def one_line(err: Exception) -> str:
    """Return what an error says, short and without line breaks."""
    text = " ".join(str(err).split()) or type(err).__name__
    return f"{text[:200].rstrip('.')}."


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and their names, wherever they came from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
