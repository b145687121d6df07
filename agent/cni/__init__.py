"""`flannel-py`: the CNI plugin, and podman's (netavark)."""

from flanneld_py.agent.cni.command import main

__all__ = ["main"]
