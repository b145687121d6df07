"""The manual page of flanneld-py, from the list of flags: `python deploy/debian/manpage.py VERSION` prints it.

Not here: what is only in docs/, which the package installs beside it.
"""

from __future__ import annotations

import sys

from flanneld_py.agent.flags import FLAGS, Flag

HEAD = r""".TH FLANNELD-PY 8 "" "flanneld-py {version}" "System Administration"
.SH NAME
flanneld-py \- overlay network agent for containers
.SH SYNOPSIS
.B flanneld-py
.RI [ flags ]
.br
.B flanneld-py-docker-opts
.RB [ \-f
.IR file ]
.RB [ \-d
.IR file ]
.RB [ \-i ]
.RB [ \-c ]
.RB [ \-m ]
.RB [ \-k
.IR name ]
.SH DESCRIPTION
Leases a container subnet from etcd and makes every other host's subnet reachable. A drop-in for flannel's daemon.
As a service it is configured in
.IR /etc/default/flanneld-py .
.PP
.B flanneld-py-docker-opts
writes Docker's options for the leased subnet, as flannel's mk-docker-opts.sh does.
.SH FLAGS
With one dash or two. Each can be given as a variable, in brackets.
"""

TAIL = r""".SH EXIT STATUS
.TP
0
stopped by SIGTERM, SIGINT or SIGQUIT; --help, --version; --cleanup: nothing of ours is left
.TP
1
cannot go on: a file that cannot be written, a health port that is taken; --cleanup, --release: an agent runs, or
something is left
.TP
2
a flag, variable or file named by one is wrong
.SH FILES
.TP
.I /run/flannel/subnet.env
the leased subnet, for container engines
.TP
.I /etc/default/flanneld-py
flags of the service, as variables
.TP
.I /usr/share/doc/flanneld-py/docs/
the guides: install, configure, operate, troubleshoot, security and others
"""


def page(version: str) -> str:
    """Return the page in troff's man macros."""
    shown = [flag for flag in FLAGS if flag.kind not in ("refused", "ignored")]
    return HEAD.format(version=_escape(version)) + "".join(map(_entry, shown)) + TAIL


def _entry(flag: Flag) -> str:
    default = f" Default: {flag.default}." if flag.default and flag.kind != "switch" else ""
    text = flag.meaning.replace("`", "") + "."
    return f".TP\n.B \\-\\-{_escape(flag.name)}\n{_escape(text + default)} [{_escape(flag.variable)}]\n"


def _escape(text: str) -> str:
    """Keep troff from taking text for requests: backslashes, hyphens that are minus signs, a dot that leads a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.stdout.write(page(sys.argv[1]))
