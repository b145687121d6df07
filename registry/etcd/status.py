"""What etcd or the way to it said instead of an answer, and which of the store's errors that is.

Both etcd clients see failures as a gRPC status: a code and a text, some from etcd, some from TLS or TCP below it.
Here alone they are told apart. In order: is it about our token (log in again, once); would another endpoint do
better (`moves_on`); else which error, and what should the operator do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flanneld_py.registry.store import Denied, HistoryLost, LeaseGone, RegistryError, Unavailable

_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old")

# Part of the status text -> the error it is and what to tell the operator. The first match wins.
_MEANINGS: tuple[tuple[str, type[RegistryError], str], ...] = (
    ("requested lease not found", LeaseGone, "says that the lease does not exist: it expired or was revoked"),
    ("required revision has been compacted", HistoryLost, "has compacted the revision asked for; list again"),
    ("required revision is a future revision", HistoryLost, "has not got as far as the revision we know; list again"),
    (
        "invalid user ID or password",
        Denied,
        "refuses the user name or password; check --etcd-username and its password",
    ),
    ("permission denied", Denied, "denies permission; grant the etcd user's role read and write access to this key"),
    ("user name is empty", Denied, "wants a user name and password; give --etcd-username and --etcd-password"),
    ("CERTIFICATE_VERIFY_FAILED", Denied, "has a certificate that our CA does not vouch for; check --etcd-cafile"),
    (
        "not in peer certificate",
        Denied,
        "has a certificate for another name; check --etcd-endpoints and the certificate",
    ),
    ("Hostname Verification", Denied, "has a certificate for another name; check --etcd-endpoints and the certificate"),
    ("CERTIFICATE_REQUIRED", Denied, "wants a client certificate; give --etcd-certfile and --etcd-keyfile"),
    ("BAD_CERTIFICATE", Denied, "rejects our client certificate; check --etcd-certfile and its issuer"),
    ("UNKNOWN_CA", Denied, "rejects our client certificate; check --etcd-certfile and its issuer"),
    (
        "Failed to create security handshaker",
        Denied,
        "was not asked: TLS cannot use --etcd-cafile, --etcd-certfile or --etcd-keyfile",
    ),
    # What the alert of a TLS 1.3 server looks like from here.
    ("Unwrap failed", Denied, "does not accept us; check --etcd-certfile and --etcd-keyfile"),
    ("Handshake read failed", Unavailable, "broke off the TLS handshake; if it serves no TLS, write http://"),
    ("WRONG_VERSION_NUMBER", Unavailable, "does not speak TLS; if that is meant, write http://"),
    ("Connection refused", Unavailable, "refuses connections; is etcd running there? else mend --etcd-endpoints"),
    ("No route to host", Unavailable, "cannot be reached; check --etcd-endpoints and the way to that host"),
    ("Network is unreachable", Unavailable, "cannot be reached; check --etcd-endpoints and the way to that host"),
    ("connect() timed out", Unavailable, "does not answer; check --etcd-endpoints and the way to that host"),
    ("address lookup failed", Unavailable, "has a name that cannot be resolved; check --etcd-endpoints and DNS"),
    ("timed out before receiving SETTINGS", Unavailable, "takes the connection and does not answer"),
    ("Stream removed", Unavailable, "ended the connection; if it is not being restarted, look at its log"),
    ("too_many_pings", Unavailable, "wants fewer signs of life; look at what is between us and etcd"),
    ("context canceled", Unavailable, "gave up the request; if it is a proxy, look at its log and at etcd"),
    ("Socket closed", Unavailable, "closed the connection; if it serves TLS, write https://"),
    ("another connection", Unavailable, "is asked anew: this host has another address"),
    ("is closed", Unavailable, "is not asked any more"),
    ("no leader", Unavailable, "has no leader; a majority of etcd's members is needed"),
    ("database space exceeded", Unavailable, "is out of space; compact, defragment and disarm its NOSPACE alarm"),
    ("duplicate key given", Denied, "rejects the request, which writes one key twice"),
    ("request is too large", Denied, "refuses so large a request; raise its --max-request-bytes"),
    ("too many operations", Denied, "refuses so large a transaction; raise its --max-txn-ops"),
)
_BY_CODE: dict[str, tuple[type[RegistryError], str]] = {
    "DEADLINE_EXCEEDED": (Unavailable, "did not answer in time"),
    "PERMISSION_DENIED": (Denied, "denies permission"),
    "UNAUTHENTICATED": (Denied, "does not accept our login"),
    "INVALID_ARGUMENT": (Denied, "rejects the request"),
    "UNIMPLEMENTED": (Denied, "does not know the request; etcd 3.4 or later is needed"),
}
_NOISE = re.compile(
    r"^failed to connect to all addresses; last error: [A-Z]+: (ipv[46]:\S+: )?(Failed to connect to remote host: )?"
)
_MOVING_ON = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "UNKNOWN", "INTERNAL")


class Refusal(Exception):
    """A gRPC status that is not OK. `code` is the status code's name, `details` its text.

    `endpoint` is filled in by who knows it. It never leaves the store: `error` says what does.
    """

    def __init__(self, code: str, details: str, endpoint: str = "") -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
        self.endpoint = endpoint

    @property
    def stale_token(self) -> bool:
        """Whether logging in again may help."""
        return self.code == "UNAUTHENTICATED" or any(text in self.details for text in _STALE_TOKEN)

    @property
    def moves_on(self) -> bool:
        """Whether another endpoint may do better.

        What etcd itself says comes through its own proxy as UNKNOWN: then the text decides, if it is known.
        """
        if self.code == "UNKNOWN":
            return self.kind is Unavailable
        return self.code in _MOVING_ON or self.kind is Unavailable

    @property
    def never_sent(self) -> bool:
        """Whether the request certainly did not reach etcd."""
        return "failed to connect to all addresses" in self.details or "address lookup failed" in self.details

    @property
    def kind(self) -> type[RegistryError]:
        """Which of the store's errors this is."""
        return self._meaning()[0]

    def __str__(self) -> str:
        return f"etcd at {self.endpoint} {self._meaning()[1]} ({_NOISE.sub('', self.details) or self.code})"

    def error(self, action: str) -> RegistryError:
        """Make the store's error: `action` is what we were about to do."""
        return self.kind(f"cannot {action}: {self}")

    def _meaning(self) -> tuple[type[RegistryError], str]:
        for text, kind, meaning in _MEANINGS:
            if text in self.details:
                return kind, meaning
        return _BY_CODE.get(self.code, (Unavailable, "failed"))


def combined(action: str, refusals: Sequence[Refusal]) -> RegistryError:
    """Make one error of what every endpoint said: Denied only if all of them refused for good."""
    kind = Denied if all(refusal.kind is Denied for refusal in refusals) else Unavailable
    return kind(f"cannot {action}: {'; '.join(map(str, refusals))}")
