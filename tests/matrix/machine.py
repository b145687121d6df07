"""A machine that QEMU emulates: another kernel over this machine's own files, which it reads and never writes.

    kernel, initrd -> this machine's / over 9p, read only, a tmpfs over it -> one command -> off

No image and no packages are made for it: what runs here runs there, in the same folders; /run is empty and what is
written is in memory. A folder of its own is shared for what is to be kept. It has no network.
"""

from __future__ import annotations

import lzma
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.matrix.debian import MatrixError, version
from tests.patience import within

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_rng")
BUSYBOX = Path("/bin/busybox")
BOOT_SECONDS, ATTEMPTS = 120, 3
"""On a busy machine an emulated kernel now and then waits for ever for its first tick: it is started again."""
INIT = """\
#!/busybox sh
B=/busybox
$B mount -t proc proc /proc; $B mount -t devtmpfs dev /dev
for module in $($B cat /order); do $B insmod /modules/$module || echo "insmod $module failed"; done
options=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o ro,cache=loose,$options this /this || { echo "no root"; $B poweroff -f; }
$B mount -t tmpfs upper /upper; $B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/this,upperdir=/upper/files,workdir=/upper/work overlay /root
$B mount -t tmpfs -o mode=755 run /root/run; $B mkdir -m 1777 /root/run/tmp
$B mkdir /root/run/shared /root/run/kernel /root/run/lock /root/run/netns
$B mount -t 9p -o $options shared /root/run/shared
$B mount -t 9p -o ro,cache=loose,$options kernel /root/run/kernel
modules=lib/modules/{version}
$B mkdir -p /root/usr/$modules; $B mount --bind /root/run/kernel/$modules /root/usr/$modules
$B mount --move /dev /root/dev; $B umount /proc
exec $B switch_root /root /bin/sh /run/shared/init
"""
START = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=dumb TMPDIR=/run/tmp
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm; ln -sf /proc/self/fd /dev/fd
hostname matrix; printf '127.0.0.1 localhost matrix\\n' >/etc/hosts; ip link set lo up
modprobe -aq tun vxlan veth bridge nf_tables
cut -d' ' -f1 /proc/uptime >/run/shared/up
cd {folder}; {command} >/run/shared/output 2>&1; echo $? >/run/shared/exit
dmesg >/run/shared/dmesg; sync; echo o >/proc/sysrq-trigger; sleep 60
"""


def run(tree: Path, shared: Path, folder: Path, argv: list[str], seconds: float) -> int | None:
    """Run a command in `folder` under the kernel of `tree`; return its exit code, None if it did not end in time.

    `shared` is /run/shared inside: output, dmesg and console are left there. Raises MatrixError.
    """
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(parents=True)
    (shared / "init").write_text(START.format(folder=shlex.quote(str(folder)), command=shlex.join(argv)))
    initrd = _initrd(tree, shared)
    # Newer packages have it beside the modules.
    (vmlinuz,) = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    # The guest's TSC is this machine's. A rate that the guest measures while the machine is busy is wrong by factors.
    measured = re.search(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    early = f"tsc_early_khz={float(measured[1]) * 1000:.0f}" if measured else ""
    qemu = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]
    qemu += ["-m", "1536", "-smp", "1", "-nographic", "-no-reboot", "-nic", "none", "-device", "virtio-rng-pci"]
    qemu += ["-kernel", str(vmlinuz), "-initrd", str(initrd)]
    # The check waits for ticks that come too late from a busy machine, and then the kernel waits for ever.
    qemu += ["-append", f"console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 no_timer_check {early}"]
    for tag, path, how in (("this", Path("/"), "on"), ("kernel", tree, "on"), ("shared", shared, "off")):
        share = f"local,id={tag},path={path},security_model=none,multidevs=remap,readonly={how}"
        qemu += ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    for _ in range(ATTEMPTS):
        with (shared / "console").open("ab") as console:
            process = subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            if _is_up(process, shared / "up"):
                process.wait(seconds)
                break
        except subprocess.TimeoutExpired:
            break
        finally:
            process.kill()
            process.wait()
    ended = shared / "exit"
    return int(ended.read_text()) if ended.exists() and ended.read_text().strip() else None


def _is_up(process: subprocess.Popen[bytes], sign: Path) -> bool:
    deadline = within(BOOT_SECONDS)
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return sign.exists()


def _initrd(tree: Path, place: Path) -> Path:
    """Pack what mounts this machine's files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, order = Path(temporary), list[str]()
        for directory in ("proc", "dev", "modules", "this", "upper", "root"):
            (folder / directory).mkdir()
        shutil.copy(BUSYBOX, folder / "busybox")
        for module in MODULES:
            for path in _with_dependencies(tree, module):
                name = path.name.partition(".")[0]
                if name not in order:
                    order.append(name)
                    (folder / "modules" / name).write_bytes(_content(path))
        (folder / "order").write_text(" ".join(order))
        init = folder / "init"
        init.write_text(INIT.replace("{version}", version(tree)))
        init.chmod(0o755)
        packed = subprocess.run(
            ["sh", "-c", "find . | cpio --quiet -o -H newc"], cwd=folder, capture_output=True, check=False
        )
        if packed.returncode != 0:
            raise MatrixError(f"cpio failed: {packed.stderr.decode().strip()}")
    initrd = place / "initrd"
    initrd.write_bytes(packed.stdout)
    return initrd


def _with_dependencies(tree: Path, module: str) -> list[Path]:
    """The files to load for a module, in order; none if it is built in."""
    done = subprocess.run(
        ["modprobe", "-d", str(tree), "-S", version(tree), "--show-depends", module],
        capture_output=True,
        text=True,
        check=False,
    )
    return [Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("insmod")]


def _content(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data
