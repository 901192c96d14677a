"""Joins a running Ray cluster: the one place that knows how, for every command with --ray."""

import os
import signal
import socket
import threading

from pipeline.errors import ConfigError, MissingPackageError

CONNECT_SECONDS = 10.0


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or the one this machine belongs to.

    Raises:
        MissingPackageError: ray is not installed.
        ConfigError: there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            '--ray: ray is not installed; pip install "smoothkd[ray]" on every node'
        ) from error
    address = os.environ.get("RAY_ADDRESS") or "auto"
    # ray.init puts a handler of its own in the place of ours (pipeline.stopping).
    handler = signal.getsignal(signal.SIGTERM)
    try:
        host, separator, port = address.rpartition(":")
        if separator and port.isdecimal() and "://" not in address:
            # ray.init tries a dead address for minutes.
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise ConfigError(
            f"--ray: no Ray cluster at {address!r} ({error}); start one with `ray start --head` "
            "and `ray start --address=HEAD:6379` on the other nodes, or set RAY_ADDRESS"
        ) from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
