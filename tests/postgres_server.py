"""Runs the tracking tests and a miniature study against MLflow on a real PostgreSQL: `make test-postgres`.

PostgreSQL comes from Debian's packages: it is installed where this is root and it is missing. Where it cannot be had,
the script says so and ends well. All that it starts it ends; all files lie in a scratch folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SERVER_VARIABLE = "MEDST_TEST_TRACKING_SERVER"
"""Tells `tracking_fixtures` to use this server instead of SQLite files."""
START_SECONDS = 180.0


class Skipped(Exception):
    """PostgreSQL cannot be had here."""


def binaries() -> Path:
    """Folder of PostgreSQL's programs, installed if need be."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        if os.geteuid() != 0:
            raise Skipped("PostgreSQL is not installed, and only root may install it: apt-get install postgresql")
        if shutil.which("apt-get") is None:
            raise Skipped("PostgreSQL is not installed, and this system has no apt-get")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "--quiet"],
                        ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "postgresql"]):
            if subprocess.run(command, env=environment, timeout=600).returncode != 0:
                raise Skipped(f"PostgreSQL is not installed, and `{' '.join(command)}` failed")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            raise Skipped("PostgreSQL refuses to run as root, and there is no user `postgres`") from None
    return found[-1].parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of a database `mlflow` of a server of our own."""
    programs, port = binaries(), free_port()
    folder.mkdir()
    prefix: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        prefix = ["runuser", "--user", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*prefix, str(programs / program), *arguments], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    run("initdb", "--pgdata", data, "--auth", "trust", "--username", "mlflow", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "start", "--wait", "--pgdata", data, "--log", str(folder / "log"), "--options", options)
    try:
        run("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "mlflow", "mlflow")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        run("pg_ctl", "stop", "--wait", "--mode", "immediate", "--pgdata", data)


@contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[str]:
    """The address of an MLflow server on `database`, which serves artifacts from `folder`."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "mlflow.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1", "--port",
             str(port), "--workers", "2", "--artifacts-destination", str(folder / "artifacts")],
            stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"MLflow did not start:\n{(folder / 'mlflow.log').read_text()}") from None
                time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)


def main() -> int:
    # Ended from outside, it ends its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = Path(tempfile.mkdtemp(prefix="medst-postgres-"))
    scratch.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    try:
        with postgres(scratch / "postgres") as database, mlflow_server(database, scratch) as server:
            print(f"MLflow on PostgreSQL answers at {server}", flush=True)
            project = scratch / "project"
            project.mkdir()
            study = [sys.executable, "-m", "medst", "sweep", "run", "smoke", "--base",
                     str(REPOSITORY / "experiments" / "phantom_smoke.yaml"), "--executor", "inline"]
            for _ in range(2):
                # The second time nothing is left to compute.
                subprocess.run(study, check=True, cwd=project, env={**environment, "MLFLOW_TRACKING_URI": server})
            return subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "tests/test_tracking.py", "tests/test_registry.py",
                 *sys.argv[1:]],
                cwd=REPOSITORY, env={**environment, SERVER_VARIABLE: server}).returncode
    except Skipped as reason:
        print(f"\n*** SKIPPED: nothing was tested against PostgreSQL. {reason} ***\n", file=sys.stderr)
        return 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
