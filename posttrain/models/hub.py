"""Where a model's files come from: a local folder, or the Hugging Face hub through its cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from posttrain.errors import ConfigError, Problem

log = logging.getLogger(__name__)

OFFLINE_HINT = "give a local folder with model.path=DIR, or start from random weights with model.weights=random"
TOKEN_HINT = f"accept its licence on the hub and set HF_TOKEN; or {OFFLINE_HINT}"
PROBE_SECONDS = 5.0
READ = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")  # what a model folder holds beside its weights


def is_local(path: str | None) -> bool:
    """Whether `path` names an existing folder."""
    return path is not None and Path(os.path.expanduser(path)).is_dir()


def local_or_id(path: str) -> str:
    """`path` as the libraries take it: a folder with the home folder spelt out, a hub id as it is."""
    return str(Path(os.path.expanduser(path))) if is_local(path) else path


@cache
def hub_reachable() -> bool:
    """One quick request to the hub, so that a machine without network fails in seconds and not after minutes of retries."""
    if constants.is_offline_mode():
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PROBE_SECONDS).close()
    except HTTPError:
        return True  # it answered
    except (URLError, TimeoutError):
        return False
    return True


def source_options(path: str, revision: str | None, *, key: str = "model.path") -> dict[str, Any]:
    """Keyword arguments for a `from_pretrained` that reads `path`: none for a folder, revision and cache rule for a hub id.

    Raises ConfigError when `path` is neither a folder nor in the cache while the hub cannot be reached.
    """
    if is_local(path):
        if revision is not None:
            raise ConfigError(Problem("model.revision", f"has no meaning for the local folder {path}", "set model.revision=null"))
        return {}
    if _looks_like_a_path(path):
        raise ConfigError(Problem(key, f"folder {path} does not exist", OFFLINE_HINT))
    if hub_reachable():
        return {"revision": revision or "main"}
    if try_to_load_from_cache(path, "config.json", revision=revision) is None:
        message = f"{path} is not in the local cache and the hub {constants.ENDPOINT} cannot be reached"
        raise ConfigError(Problem(key, message, OFFLINE_HINT))
    log.warning("The hub cannot be reached; %s comes from the local cache.", path)
    return {"revision": revision or "main", "local_files_only": True}


def _looks_like_a_path(path: str) -> bool:
    """Hub ids are `name` or `owner/name`; anything else can only be a folder."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


@contextmanager
def hub_errors(path: str, *, key: str = "model.path") -> Iterator[None]:
    """Turn what `from_pretrained` raises for a missing, gated or unreadable source into a ConfigError that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise ConfigError(Problem(key, f"{path} is gated", TOKEN_HINT)) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(Problem(key, f"{path} is not on the hub, or is private", TOKEN_HINT)) from error
    except OSError as error:
        raise _explain(error, path, key) from error
    except ValueError as error:
        raise _refused(error, path, key) from error


def _explain(error: OSError, path: str, key: str) -> ConfigError:
    """transformers wraps the hub's errors in OSError: the cause tells which case it is."""
    first_line = _first_line(error)
    causes = [error.__cause__, error.__context__]
    if any(isinstance(cause, GatedRepoError | RepositoryNotFoundError) for cause in causes):
        return ConfigError(Problem(key, f"{path} cannot be read: {first_line}", TOKEN_HINT))
    return ConfigError(Problem(key, f"{path} cannot be read: {first_line}", OFFLINE_HINT))


def _refused(error: ValueError, path: str, key: str) -> ConfigError:
    if "trust_remote_code" in str(error):
        message = f"{path} brings its own Python code, which runs only for those who trust it"
        return ConfigError(Problem(key, message, "read the code, then set model.trust_remote_code=true"))
    return ConfigError(Problem(key, f"{path} cannot be read: {_first_line(error)}"))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def commit_of(path: str, revision: str | None) -> str:
    """The commit of a hub id. Raises ConfigError if it is neither in the cache nor to be had."""
    with hub_errors(path):
        return Path(hf_hub_download(path, "config.json", **source_options(path, revision))).parent.name


def snapshot_of(path: str, revision: str | None, *, key: str = "model.path") -> Path:
    """The folder in the cache with a hub id's config, tokenizer and weights, fetched where the hub can be reached.

    Raises ConfigError if it is neither in the cache nor to be had.
    """
    options = source_options(path, revision, key=key)
    with hub_errors(path, key=key):
        folder = Path(snapshot_download(path, allow_patterns=[*READ, "*.safetensors"], **options))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(path, allow_patterns=[*READ, "*.bin"], **options))
    return folder
