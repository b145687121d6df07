"""Which etcd and which Docker the lab and the tests run: this machine's, or those that the environment names.

    ETCD=/path/to/etcd         etcdctl is the one beside it, or ETCDCTL=/path/to/etcdctl
    DOCKERD=/path/to/dockerd   docker, containerd and what else it needs are those beside it, or DOCKER=/path/to/docker

What is not said is found by PATH.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_BESIDE = {"ETCDCTL": "ETCD", "DOCKER": "DOCKERD"}


def program(name: str) -> str:
    """Return what to run as `etcd`, `etcdctl`, `dockerd` or `docker`: a path, or the name as it is."""
    variable = name.upper()
    if chosen := os.environ.get(variable):
        return chosen
    daemon = os.environ.get(_BESIDE.get(variable, ""))
    beside = Path(daemon).with_name(name) if daemon else None
    return str(beside) if beside and beside.exists() else name


def search_path(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a PATH by which a program finds first what is beside it; else as the environment has it."""
    found, usual = Path(program(name)), environment.get("PATH", os.defpath)
    return f"{found.parent}{os.pathsep}{usual}" if found.is_absolute() else usual
