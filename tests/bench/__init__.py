"""Measurements of the daemon from outside: `python -m tests.bench [NAME ...]` as root, `make bench`.

Nothing in the daemon is instrumented. What is timed is an effect that somebody else could see: a route in the kernel,
a key in etcd, READY=1, bytes through iperf3, counters in /proc. No figure is ever asserted; a machine that is busy
with something else makes a slow figure, not a failure.

    __main__.py   arguments, order, clean-up
    figures.py    what a benchmark returns, and the goals                     (pure)
    report.py     the table and the JSON      chart.py     the picture        (pure)
    machine.py    what it was measured on
    peers.py      hosts that exist only as leases                             (pure)
    cluster.py    one real host among them, from tests/lab
    gateway.py    etcd over HTTP: the client that is timed costs nothing
    witness.py    the kernel's own count of routes, and its events
    process.py    memory and CPU of a process; who listens on a socket
    looplag.py    how long the daemon's event loop was busy at a stretch

    streams.py    TCP streams with each congestion control  underlay.py   what the underlay cuts
    paths.py      packet paths, by kernel or by process     passes.py     one round on one of them, and goals
    packets.py    small UDP packets, offered and delivered  generator.py  the program that sends them

    load.py joins.py latency.py repair.py start.py idle.py throughput.py userspace.py      the benchmarks, one each
"""
