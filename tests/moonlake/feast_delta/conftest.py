"""The online stores under test, and a Redis server of the tests' own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a Redis server on a free loopback port, which keeps nothing on disk and ends with the run."""
    server = which("redis-server")
    if server is None:
        pytest.skip("redis-server is not on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Configuration of each of our online stores in turn, empty."""
    if request.param == "sqlite":
        kind = "moonlake.feast_delta.online_sqlite.DeltaSqliteOnlineStore"
        return {"type": kind, "path": str(tmp_path / "online.db")}
    found: dict[str, Any] = request.getfixturevalue("redis_online")
    return found


@pytest.fixture
def redis_online(redis_address: str) -> dict[str, Any]:
    """Configuration of our Redis online store, empty."""
    from redis import Redis

    host, port = redis_address.split(":")
    with Redis(host=host, port=int(port)) as client:
        client.flushall()
    kind = "moonlake.feast_delta.online_redis.DeltaRedisOnlineStore"
    return {"type": kind, "connection_string": redis_address}


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"redis-server does not answer on port {port}")
