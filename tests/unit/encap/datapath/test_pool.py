"""What becomes of a member that fails in a way that nobody thought of: it ends, and its maker goes on as itself."""

from __future__ import annotations

import subprocess
import sys

from tests.patience import patient

# In a process of its own: a forked child that comes back here would go on with the tests.
MAKE = """
import select
from ipaddress import IPv4Network
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.pool import WorkerPool, WorkerLost

class Lane:
    def close(self):
        pass

wanted = messages.Configure(messages.Mode.RAW, "flannel0", bytes(4), 8285, 1472, (IPv4Network("10.5.1.0/24"),),
workers=2)
try:
    crew = WorkerPool(wanted, [(Lane(), Lane())], 1, lambda: 0.0)  # A Worker cannot work with these.
    for member, mourn in crew.watched():
        select.select([member], [], [])
        try:
            mourn()
        except WorkerLost as error:
            print(error)
    crew.close()
finally:
    print("the maker's end")
"""


def test_a_member_that_fails_does_not_run_into_its_makers_code() -> None:
    done = subprocess.run([sys.executable, "-c", MAKE], capture_output=True, text=True, timeout=patient(20), check=True)
    assert done.stdout.splitlines() == ["a data-plane worker died", "the maker's end"]
    assert "AttributeError" in done.stderr, "and why is said"
