"""Addresses of MLflow stores. Pure; imports nothing of MLflow."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from posttrain.errors import ConfigError, Problem

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")


def resolve_uri(uri: str | None, launch_dir: Path) -> str:
    """An absolute store address: `uri`, else $MLFLOW_TRACKING_URI, else ``sqlite:///LAUNCH_DIR/outputs/mlflow.db``.

    A plain path ending in .db and a relative ``sqlite:///path`` count from `launch_dir`, so that runs which change folder share one store.
    Raises ConfigError on a scheme that MLflow does not serve.
    """
    given = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///outputs/mlflow.db"
    if "://" not in given and given.endswith(".db"):
        given = f"sqlite:///{given}"
    scheme = given.split(":", 1)[0].split("+", 1)[0]
    if scheme == "sqlite":
        return f"sqlite:///{sqlite_path(given, launch_dir)}"
    if scheme not in DATABASES + SERVERS:
        expected = "sqlite:///PATH.db, a path ending in .db, http(s)://HOST:PORT, postgresql://..., mysql://..., databricks"
        raise ConfigError(Problem("tracking.uri", f"'{given}' is no MLflow store, expected {expected}"))
    return given


def sqlite_path(uri: str, launch_dir: Path = Path()) -> Path:
    """The database file of a ``sqlite:///`` address, absolute."""
    return (launch_dir / os.path.expanduser(uri.split(":///", 1)[-1])).absolute()


def artifact_location(uri: str) -> str | None:
    """Where the experiment's artifacts go: a folder beside a SQLite database; None = the server knows better."""
    return (sqlite_path(uri).parent / "mlartifacts").as_uri() if uri.startswith("sqlite") else None


def redacted(uri: str) -> str:
    """The address without user name and password, for logs and terminals."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))


def ui_hint(uri: str) -> str:
    """How the user looks at the store: a command for a database, the address of a server."""
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    return f"mlflow ui --backend-store-uri {shlex.quote(redacted(uri))}" if scheme in DATABASES else redacted(uri)
