"""Values from YAML files and `key=value` overrides into checked models, with one clear line for what is wrong."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stexpr.errors import ConfigError, nearest


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and values that are not finite."""

    LATER: ClassVar[tuple[str, ...]] = ()
    """Keys that came later: at their defaults they decide nothing, and earlier runs keep their hashes."""
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def described(self) -> dict[str, Any]:
        """Return what decides a result, in plain JSON values; keys that came later only where they are set."""
        return self.model_dump(mode="json", exclude=_not_set(self))


def _not_set(config: Strict) -> dict[str, Any]:
    """Return the later keys at their defaults, of a model and of those within it, as pydantic excludes them."""
    fields = type(config).model_fields
    left_out: dict[str, Any] = {key: True for key in config.LATER if getattr(config, key) == fields[key].default}
    for key in fields.keys() - left_out.keys():
        value = getattr(config, key)
        if isinstance(value, Strict) and (inside := _not_set(value)):
            left_out[key] = inside
    return left_out


def content_hash(value: Any) -> str:
    """Hash plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def resource_folder(kind: Literal["configs", "data_cards"]) -> Path:
    """Find the files that come with stexpr: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the folder {kind} is missing beside {package}: the installation is incomplete; install stexpr again")


def find_config(source: str | Path, folder: str) -> Path:
    """Return the path given, or that of the named file among `configs/<folder>` of stexpr."""
    path = Path(source)
    if path.is_file():
        return path
    own = resource_folder("configs") / folder
    named = own / f"{path.name.removesuffix('.yaml')}.yaml"
    if str(path) == path.name and named.is_file():
        return named
    raise ConfigError(f"no configuration {str(source)!r}; {nearest(path.stem, (file.stem for file in own.glob('*.yaml')))}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: The file is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror or err}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not keys and values")
    return values


def set_override(values: dict[str, Any], override: str) -> None:
    """Write one `a.b.c=value` into nested mappings.

    Raises:
        ConfigError: There is no `=`, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value, such as training.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"the value of override {override!r} is not YAML") from err
    set_value(values, key, value)


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Write a value at a dotted key of nested mappings."""
    *parents, last = key.split(".")
    for parent in parents:
        child = values.get(parent)
        values[parent] = dict(child) if isinstance(child, dict) else {}
        values = values[parent]
    values[last] = value


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put nested keys and values over others.

    Example:
        >>> merged({"panel": {"rule": "list", "n": 1}}, {"panel": {"n": 2}})
        {'panel': {'rule': 'list', 'n': 2}}
    """
    values = dict(under)
    for key, value in over.items():
        below = values.get(key)
        values[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return values


def validated(model: type[BaseModel], values: Mapping[str, Any], source: str) -> BaseModel:
    """Check values against a model, and say in one line what is wrong.

    Raises:
        ConfigError: With the place, the value, what is allowed and, for an unknown key, the nearest known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as err:
        raise ConfigError(f"{source}: {'; '.join(_explain(model, error) for error in err.errors())}") from err


def _explain(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    parts, reached = _locate(model, error["loc"])
    place = ".".join(parts)
    if error["type"] == "extra_forbidden":
        return f"unknown key {place!r}; {nearest(parts[-1], reached.model_fields)}"
    if error["type"] == "missing":
        return f"{place!r} is missing"
    if error["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        return f"{place}.kind = {error['ctx']['tag']!r}; {nearest(error['ctx']['tag'], tags)}"
    if error["type"] == "union_tag_not_found":
        written = error["input"]
        return f"{place}.kind is empty" if isinstance(written, Mapping) else f"{place} = {written!r} is not keys and values"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not place:
        return message
    # A rule over several keys is told with its own words; the whole mapping would drown them.
    return f"{place}: {message}" if isinstance(error["input"], Mapping) else f"{place} = {error['input']!r}: {message}"


def _locate(model: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """Follow a location of a validation error down to the model it points into.

    Returns:
        The keys as one would write them, without the tags that pydantic puts where a model is one of several, and the
        innermost model reached.
    """
    keys: list[str] = []
    candidates = [model]
    for part in location:
        tagged = [one for one in candidates if "kind" in one.model_fields and one.model_fields["kind"].default == part]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        keys.append(str(part))
        field = candidates[0].model_fields.get(str(part))
        candidates = (_models_in(field.annotation) if field else []) or candidates
    return keys, candidates[0]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in _models_in(inner)]
