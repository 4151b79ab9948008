"""Models and their versions in a base folder: found, loaded in the background, switched, reported."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfseq.serve.errors import ServingError, internal, invalid, not_found
from tfseq.serve.servable import Servable

_log = logging.getLogger(__name__)
_VERSION = re.compile(r"\d{1,18}")
_ALL = 1 << 62
Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Config:
    """What is served of one model.

    Args:
        base: folder of its versions.
        latest: how many of the highest versions are served.
        specific: or exactly these versions.
        labels: names of versions.
    """

    base: Path
    latest: int = 1
    specific: tuple[int, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class Version:
    """A version and how far it is: START (found), LOADING, AVAILABLE, END (unloaded, or broken: then with an error)."""

    number: int
    state: str = "START"
    error: ServingError | None = None
    servable: Servable | None = None
    seen: Fingerprint = ()  # at the last look
    broken: Fingerprint | None = None  # when loading it failed


class Repository:
    """The models of a base folder.

    A version that appears is loaded once its files stay as they are from one look to the next, warmed up, and only then
    served; the one before goes on until then. A version that cannot be loaded is reported, and tried again when its files change.

    Args:
        folder: `<folder>/<model>/<version>/saved_model.pb`; with `models.config` what that says; or the folder of one model.
        on_load: called with model, version, "loaded" or "failed", and seconds.
    """

    def __init__(self, folder: str | Path, on_load: Callable[[str, int, str, float], None] = lambda *_: None):
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise ValueError(f"`folder` must be a folder of SavedModels, NAME/VERSION/saved_model.pb; there is none at {folder}.")
        self._on_load = on_load
        self._configs: dict[str, Config] = {}
        self._config_read: tuple[int, int] | None = None
        self._versions: dict[str, dict[int, Version]] = {}
        self._served: dict[str, dict[int, Servable]] = {}  # replaced, never changed: requests read it without a lock
        self._lock = threading.Lock()
        self._looks = 0

    # What requests ask -----------------------------------------------------------------------------------------------

    def find(self, model: str, version: int | None = None, label: str | None = None) -> tuple[int, Servable]:
        """(number, servable) of a version that is served, by number, label, or the highest.

        Raises:
            ServingError: there is none.
        """
        if not model:
            raise invalid("ModelSpec has no name specified.")
        served = self._served.get(model, {})
        if label is not None:
            config = self._configs.get(model)
            if config is not None and label not in config.labels:
                raise invalid(f"Unrecognized servable version label: {label[:100]}")
            version = config.labels[label] if config else None
        if version is None and served:
            version = max(served)
        if version not in served:
            wanted = f"Latest({model[:100]})" if version is None else f"Specific({model[:100]}, {version})"
            raise not_found(f"Servable not found for request: {wanted}")
        return version, served[version]

    def status(self, model: str, version: int | None = None, label: str | None = None) -> list[Version]:
        """The known versions of a model, highest first, or the one asked for."""
        if not model:
            raise invalid("Missing model name in request.")
        if label is not None:
            labels = self._configs[model].labels if model in self._configs else {}
            if label not in labels:
                raise invalid(f"Unrecognized servable version label: {label[:100]}")
            version = labels[label]
        with self._lock:
            known = sorted(self._versions.get(model, {}).values(), key=lambda v: -v.number)
        if version is not None:
            known = [v for v in known if v.number == version]
            if not known:
                raise not_found(f"Could not find version {version} of model {model[:100]}")
        if not known:
            raise not_found(f"Could not find any versions of model {model[:100]}")
        return known

    def models(self) -> dict[str, list[int]]:
        """Name -> versions that are served, highest first; empty where none is."""
        return {name: sorted(self._served.get(name, {}), reverse=True) for name in sorted(self._configs)}

    def labels(self, model: str) -> dict[str, int]:
        """Label -> version, as `models.config` says."""
        return dict(self._configs[model].labels) if model in self._configs else {}

    # The background --------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """One look at the folder; loads and unloads. Takes as long as loading takes; requests are answered meanwhile."""
        try:
            self._read_configs()
        except (OSError, ValueError) as error:
            if self._looks == 0:
                raise
            _log.error("models.config was not read, what it said before stays: %s", error)
        for name, config in self._configs.items():
            try:
                self._refresh_model(name, config)
            except OSError as error:  # a folder that vanishes while it is listed: the next look sees it
                _log.warning("%s: %s", config.base, error)
        for name in set(self._served) - set(self._configs):
            self._serve(name, {})
        self._looks += 1

    def _read_configs(self) -> None:
        path = self.folder / "models.config"
        if path.is_file():
            stat = path.stat()
            if (stat.st_mtime_ns, stat.st_size) != self._config_read:
                self._config_read = (stat.st_mtime_ns, stat.st_size)
                self._configs = read_config(path)
            return
        self._config_read = None  # one that comes back is read again
        if _version_folders(self.folder):
            self._configs = {self.folder.name: Config(self.folder)}
        else:
            folders = sorted(p for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))
            self._configs = {p.name: Config(p) for p in folders if p.name in self._versions or _version_folders(p)}

    def _refresh_model(self, name: str, config: Config) -> None:
        found = _version_folders(config.base)
        with self._lock:
            versions = self._versions.setdefault(name, {})
            for number in [n for n, version in versions.items() if n not in found and version.state == "START"]:
                del versions[number]
        wanted = sorted(set(config.specific) & set(found) if config.specific else found, reverse=True)
        count = _ALL if config.specific else config.latest
        kept: dict[int, Servable] = {}
        for number in wanted:
            if len(kept) == count:
                break
            with self._lock:
                version = versions.setdefault(number, Version(number))  # a version that is not wanted has no state
            servable = self._get_ready(name, version, found[number])
            if servable is not None:
                kept[number] = servable
                self._serve(name, {**self._served.get(name, {}), number: servable})  # beside the old, until all are ready
        if kept or not found:  # else those of before stay, even where their folder is gone, until there is another
            self._serve(name, kept)

    def _get_ready(self, name: str, version: Version, folder: Path) -> Servable | None:
        """The loaded version, or None where it is being copied or broken."""
        if version.servable is not None:
            return version.servable
        now = _fingerprint(folder)
        settled = self._looks == 0 or now == version.seen
        version.seen = now
        if not settled or now == version.broken:
            return None
        version.state, version.error, start = "LOADING", None, time.monotonic()
        try:
            servable = Servable(folder)
            servable.warm_up(folder)
        except Exception as reason:  # whatever a SavedModel from outside does, the server goes on
            error = reason if isinstance(reason, ServingError) else internal(reason)
            version.state, version.error, version.broken = "END", error, now
            _log.error("%s version %d cannot be loaded: %s", name, version.number, error)
            self._on_load(name, version.number, "failed", time.monotonic() - start)
            return None
        version.state, version.servable = "AVAILABLE", servable
        _log.info("%s version %d is served", name, version.number)
        self._on_load(name, version.number, "loaded", time.monotonic() - start)
        return servable

    def _serve(self, name: str, servables: dict[int, Servable]) -> None:
        """From now on these versions of a model answer; requests that have begun keep the one they began with."""
        gone = self._served.get(name, {}).keys() - servables.keys()
        self._served = {**self._served, name: servables}
        for number in gone:
            version = self._versions[name][number]
            version.state, version.servable = "END", None
            _log.info("%s version %d is no longer served", name, number)


def read_config(path: Path) -> dict[str, Config]:
    """Name -> what `models.config` says, a text proto of TF Serving's `ModelServerConfig`.

    A `base_path` that does not exist here, as `/models/NAME` of a container, is the folder NAME beside the file.
    """
    try:
        proto = text_format.Parse(path.read_text(), ModelServerConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no text proto of ModelServerConfig: {error}") from error
    configs = {}
    for model in proto.model_config_list.config:
        base = Path(model.base_path)
        base = base if base.is_absolute() else path.parent / base
        if not base.is_dir():
            base = path.parent / base.name
        policy = model.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        latest = policy.latest.num_versions or 1 if kind == "latest" else _ALL if kind == "all" else 1
        specific = tuple(policy.specific.versions) if kind == "specific" else ()
        if not model.name or model.name in configs:
            raise ValueError(f"{path}: every model needs a name of its own; received {model.name!r}.")
        configs[model.name] = Config(base, latest, specific, dict(model.version_labels))
    return configs


def _version_folders(base: Path) -> dict[int, Path]:
    if not base.is_dir():
        return {}
    return {int(p.name): p for p in base.iterdir() if _VERSION.fullmatch(p.name) and p.is_dir()}


def _fingerprint(folder: Path) -> Fingerprint:
    """Names, sizes and times of the files of a folder: the same twice, and nothing is being copied there."""
    return tuple(sorted(_describe(folder)))


def _describe(folder: Path) -> Iterable[tuple[str, int, int]]:
    for path in folder.rglob("*"):
        stat = path.stat()
        yield str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns
