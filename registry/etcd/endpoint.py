"""Where etcd is and what it takes to be let in: endpoints, TLS files, user and password.

Values and file reading only; connections are made in client.py and etcd3_client.py. In order:

    "https://10.0.0.1:2379"  --parse_endpoints-->  Endpoint(target="10.0.0.1:2379", secure=True)
    Tls(paths)               --read_tls-->         Secrets(PEM bytes), checked to be usable
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Never
from urllib.parse import urlsplit

_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A listing of thousands of leases, or a watch that catches up, is far more than gRPC's 4 MB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # gRPC servers by default end a connection on which they say nothing and are asked more often than every five
    # minutes ("too_many_pings"). etcd allows every 5 s, its own proxy (3.4) does not. What notices a connection
    # that is dead within seconds are the calls' deadlines and the watch's requests, and with them TCP_USER_TIMEOUT.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Without this one, a ping that is not answered is noticed after a minute only.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted etcd is found again within a second; the agent's own backoff is what spares etcd.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # Else a channel made anew goes on over the connection of the one before.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy in the environment is for the web, not for the control plane's own store.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Two stores in one process must not share a connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files. `ca` None: the system's roots. Certificate and key come together or not at all."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of etcd's own authentication. The password is never shown."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One etcd server: `url` as people know it, `target` as gRPC wants it."""

    url: str
    target: str
    secure: bool


@dataclass(frozen=True, slots=True)
class Secrets:
    """The contents of the TLS files. `ca` None: gRPC's built-in roots, where the system has none."""

    ca: bytes | None = field(repr=False)
    certificate: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)


def parse_endpoints(texts: Sequence[str], tls: Tls | None) -> tuple[Endpoint, ...]:
    """Read endpoints such as `https://host:2379`; without a scheme, TLS is used if `tls` is given.

    The port is 2379 if left out; a path is left out, as etcd's own client does. Raises ValueError.
    """
    endpoints = tuple(_parse_endpoint(text.strip(), tls) for text in texts if text.strip())
    if not endpoints:
        raise ValueError("the list is empty; give at least one, such as http://10.0.0.5:2379")
    return endpoints


def _parse_endpoint(text: str, tls: Tls | None) -> Endpoint:
    url = text if "://" in text else f"{'https' if tls else 'http'}://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, 2379 if parts.port is None else parts.port
    except ValueError:
        host, port = None, 0
    if not host or not port or parts.scheme not in ("http", "https") or "@" in text or parts.query:
        shown = text.rpartition("@")[2]
        raise ValueError(f"etcd endpoint {shown!r} must look like http://10.0.0.5:2379 (no user)")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Endpoint(f"{parts.scheme}://{target}", target, parts.scheme == "https")


def read_tls(tls: Tls | None) -> Secrets:
    """Read the PEM files, or the system's roots where no CA is named. Raises ValueError."""
    tls = tls or Tls()
    if (tls.certificate is None) != (tls.key is None):
        have, lack = ("certificate", "key") if tls.key is None else ("key", "certificate")
        raise ValueError(f"an etcd client {have} is given without its {lack}; give both or none")
    ca = tls.ca or system_roots()
    secrets = Secrets(_read(ca, "CA"), _read(tls.certificate, "client certificate"), _read(tls.key, "client key"))
    _require_usable(tls)
    return secrets


def system_roots() -> Path | None:
    """Find the file with the system's trusted certificates: gRPC by itself looks only at a copy of its own."""
    candidates = (ssl.get_default_verify_paths().cafile, *_SYSTEM_ROOTS)
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)


def _require_usable(tls: Tls) -> None:
    """Try what was read, as gRPC says of none of it what is wrong with it. Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whether a key is long enough is for etcd and gRPC to say.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if tls.ca is not None:
        try:
            context.load_verify_locations(tls.ca)
        except OSError as error:
            raise ValueError(
                f"--etcd-cafile: {tls.ca} holds no certificate that can be read ({_why(error)})"
            ) from error
    if tls.certificate is None or tls.key is None:
        return
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=partial(_refuse_passphrase, tls.key))
    except OSError as error:
        pair = f"--etcd-certfile {tls.certificate} and --etcd-keyfile {tls.key}"
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{pair} do not belong together: the key is another certificate's") from error
        raise ValueError(f"{pair} cannot be used; expected a certificate and its key ({_why(error)})") from error


def _refuse_passphrase(key: Path) -> Never:
    raise ValueError(f"--etcd-keyfile: {key} has a passphrase, and nobody is here to type it; give a key without")


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or "not what it should be"


def _read(path: Path | None, role: str) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the etcd {role} file {path}: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise ValueError(f"the etcd {role} file {path} is not in PEM format; expected a -----BEGIN line")
    return content
