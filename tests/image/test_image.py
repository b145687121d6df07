"""The container image in real engines: `make test-image`. The options are those of docs/container.md.

h1  dockerd or podman ── the image: the agent of h1      h2  an agent without a container
    h1c1                                                     h2c1
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.docker import Docker
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import ping_through
from tests.lab.podman import Podman
from tests.lab.topology import Plan
from tests.netns.conftest import LEASED
from tests.netns.test_agent import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/container.md"
MOST_BYTES = 120_000_000
NAME = "flanneld-py"
NO_TIMER = ("--no-healthcheck",)
"""podman's health checks are timers of systemd, which need not run where the tests do."""
ALLOWED = 1 << 12 | 1 << 13
"""CAP_NET_ADMIN and CAP_NET_RAW (linux/capability.h)."""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def documented() -> list[str]:
    """The words of the guide's `docker run` between `run` and the image, without the variables."""
    (command,) = re.findall(r"^docker run (.*?)--env \S+ localhost/flanneld-py:\S+$", GUIDE.read_text(), re.M | re.S)
    return shlex.split(command.replace("\\\n", " "))


@dataclass(frozen=True, slots=True)
class Site:
    """Two hosts; on the first one, an engine with the image loaded."""

    lab: Lab
    engine: Run
    image: str
    extra: Sequence[str]
    """Options that are due to the lab."""

    @property
    def first(self) -> Host:
        return self.lab.hosts[0]

    def options(self) -> list[str]:
        """What the guide says, with a folder of the host's own for /run/flannel."""
        shared = self.first.agent.subnet_file.parent
        words = [word.replace("/run/flannel:", f"{shared}:") for word in documented()]
        return [*words, "--cgroup-parent", f"/{self.lab.run.name}", *self.extra]

    def start(self, *arguments: str) -> None:
        """Start the agent of the first host in its container, and wait until it is healthy."""
        etcd = f"http://{self.lab.plan.gateway}:2379"
        self.engine("run", *self.options(), "--env", f"FLANNELD_ETCD_ENDPOINTS={etcd}", self.image, *arguments)
        self.wait_healthy()
        if not self.first.containers:  # The subnet stays from test to test.
            self.lab.attach(self.first)

    def once(self, options: Sequence[str], *arguments: str) -> tuple[int, str]:
        """Run it to its end, and remove the container; return exit code and what it says."""
        words = [word for word in options if word != "--detach"]
        words[words.index("unless-stopped")] = "no"
        done = self.engine("run", *words, self.image, *arguments, check=False)
        self.engine("rm", "--force", NAME, check=False)
        return done.returncode, done.stdout + done.stderr

    def check(self) -> subprocess.CompletedProcess[str]:
        """Run the image's health check."""
        check = ("/usr/lib/flanneld-py/bin/python3", "-IS", "/usr/lib/flanneld-py/healthcheck.py")
        return self.engine("exec", NAME, *check, check=False)

    def wait_healthy(self) -> None:
        until(lambda: self.check().returncode == 0, "the agent in the container is ready", timeout=30)

    def pid(self) -> int:
        return int(json.loads(self.engine("inspect", NAME).stdout)[0]["State"]["Pid"])


@contextmanager
def opened(engine: str, archive: Path) -> Iterator[Site]:
    """Two hosts, and the image in an engine of the first one."""
    image = "localhost/" + archive.name.replace("_", ":", 1).partition("_")[0]
    run: Run
    extra: Sequence[str] = ()
    with Lab(Plan(hosts=2, overlay="none", config=LEASED)) as lab, ExitStack() as ending:
        if engine == "docker":
            docker = Docker(lab.hosts[0], lab.run.name)
            ending.callback(docker.close)
            docker.launch("--bridge", "none", "--iptables=false")
            run = docker.docker
        else:
            podman = Podman(lab.hosts[0], lab.run.name)
            podman.configure()
            run, extra = podman.podman, NO_TIMER
            ending.callback(run, "rm", "--force", "--time", "0", "--ignore", NAME)
        run("load", "--input", str(archive))
        yield Site(lab, run, image, extra)


@pytest.fixture(scope="module", params=["docker", "podman"])
def site(request: pytest.FixtureRequest, archive: Path) -> Iterator[Site]:
    with opened(request.param, archive) as opened_site:
        second = opened_site.lab.hosts[1]
        second.agent.start()
        second.agent.wait_ready()
        opened_site.lab.attach(second)
        yield opened_site


@pytest.fixture
def run(site: Site) -> Iterator[Site]:
    """The same, with nothing of ours on the first host when the test begins."""
    yield site
    logs = site.engine("logs", NAME, check=False)
    print((logs.stdout + logs.stderr)[-4000:])
    site.engine("rm", "--force", NAME, check=False)
    code, said = site.once(site.options(), "--cleanup")
    assert code == 0, said


def test_it_is_small(archive: Path) -> None:
    assert archive.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_containers_reach_each_other_and_the_agent_has_what_the_unit_has(run: Site, datapath: str) -> None:
    run.start("--datapath", datapath)
    assert run.lab.wait_connected() == []
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{run.pid()}/status").read_text().splitlines())
    assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == dict.fromkeys(
        ("CapEff", "CapPrm", "CapBnd"), ALLOWED
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["0"] * 4


def test_a_restart_of_the_container_loses_no_packet_of_the_kernels(run: Site) -> None:
    run.start("--datapath", "kernel")
    assert run.lab.wait_connected() == []
    with ping_through(run.lab.containers[0], run.lab.containers[1]) as stream:
        stream.wait_replies(20)
        before = run.pid()
        run.engine("restart", NAME)
        run.wait_healthy()
        assert run.pid() != before
        run.engine("rm", "--force", NAME)
        run.start("--datapath", "kernel")
        stream.wait_replies(20)
        passage = stream.stop()
    assert passage.received == passage.sent


def test_after_a_restart_userspace_carries_again(run: Site) -> None:
    run.start("--datapath", "userspace")
    assert run.lab.wait_connected() == []
    with ping_through(run.lab.containers[0], run.lab.containers[1]) as stream:
        stream.wait_replies(20)
        run.engine("restart", NAME)
        run.wait_healthy()
        stream.wait_replies(20)
        passage = stream.stop()
    print(f"a restart in userspace: {passage}")
    assert passage.received > 0


def test_the_hosts_firewall_is_programmed_from_inside(run: Site) -> None:
    run.start("--ip-masq")
    assert "flanneld-py" in run.first.namespace.run(["nft", "list", "ruleset"]).stdout


@pytest.mark.parametrize(
    ("option", "instead", "sentence"),
    [
        ("NET_ADMIN", "NET_RAW", "CAP_NET_ADMIN"),
        ("host", "none", "--network=host"),
    ],
)
def test_what_it_cannot_do_without_is_said_in_one_sentence(run: Site, option: str, instead: str, sentence: str) -> None:
    code, said = run.once([instead if word == option else word for word in run.options()])
    assert code == 1
    assert len(said.strip().splitlines()) == 1, said
    assert sentence in said


def test_its_version_needs_nothing(run: Site) -> None:
    done = run.engine("run", "--rm", "--cgroup-parent", f"/{run.lab.run.name}", *run.extra, run.image, "--version")
    assert (done.stdout + done.stderr).startswith("flanneld-py ")


def test_a_health_check_tells_that_an_agent_waits(run: Site) -> None:
    run.engine("run", *run.options(), "--env", "FLANNELD_ETCD_ENDPOINTS=http://127.0.0.1:1", run.image)
    answer: list[str] = []

    def waits() -> bool:
        answer[:] = [run.check().stdout]
        return "not ready" in answer[0]

    until(waits, "the health server answers", timeout=30)
    assert run.check().returncode == 1
