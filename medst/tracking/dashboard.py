"""The dashboard's server: how it is started, and what protects it where other machines can reach it.

What must not live here: the starting itself, and anything that reads or writes runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medst.tracking.connection import TrackingError

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
SHORTEST_PASSWORD = 12


@dataclass(frozen=True)
class Protection:
    """MLflow's basic authentication, with its users in a file of the project."""

    hosts: tuple[str, ...]
    """Names under which the server answers, with port; the first is the one to tell."""
    environment: Mapping[str, str]


def is_this_machine_only(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def protection(host: str, port: int, folder: Path) -> Protection | None:
    """What a server on `host` needs; None where only this machine reaches it.

    Args:
        folder: of the file of users and the authentication's settings.

    Raises:
        TrackingError: other machines could reach it, and there is no password, or no authentication installed.
    """
    if is_this_machine_only(host):
        return None
    users = folder / "dashboard-users.db"
    password = os.environ.get(PASSWORD, "")
    if len(password) < SHORTEST_PASSWORD and not users.exists():
        raise TrackingError(f"--host {host} lets other machines in: set {PASSWORD} to the administrator's password, "
                            f"{SHORTEST_PASSWORD} characters or more; or leave --host away and reach 127.0.0.1 "
                            "through ssh -L")
    if importlib.util.find_spec("flask_wtf") is None:
        raise TrackingError(f"--host {host} needs MLflow's authentication; install it with: pip install 'mlflow[auth]'")
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dashboard-auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"database_uri = sqlite:///{users.absolute()}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = true\n")
    names = [socket.gethostname(), socket.getfqdn(), *_addresses(), "localhost", "127.0.0.1"]
    if host not in ("0.0.0.0", "::"):
        names.insert(0, host)
    return Protection(
        hosts=tuple(dict.fromkeys(f"{name}:{port}" for name in names)),
        environment={"MLFLOW_AUTH_CONFIG_PATH": str(settings.absolute()),
                     "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY")
                     or secrets.token_hex(32)})


def server_command(uri: str, host: str, port: int, protected: Protection | None) -> list[str]:
    """The command of a small MLflow server on the store at `uri`."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host,
               "--port", str(port), "--workers", "1"]
    if protected is not None:
        command += ["--app-name", "basic-auth", "--allowed-hosts", ",".join(protected.hosts)]
    return command


def _addresses() -> list[str]:
    """IPv4 addresses of this machine: what its own name resolves to, and the one from which it reaches others."""
    found: list[str] = []
    # A name that nothing resolves, and no network, are no errors.
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        # Nothing is sent: a datagram socket only looks up its route.
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return found
