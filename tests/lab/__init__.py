"""Real hosts on one machine: network namespaces, a real etcd, an agent on each host, containers behind it.

    namespace core                       etcd 172.30.0.1:2379
    br0 172.30.0.1/24 ─────┬───────────────────┬───────────────────┐        underlay, MTU 1500
                           │                   │                   │
                    eth0 172.30.0.11    eth0 172.30.0.12    eth0 172.30.0.13
    namespace       h1  agent           h2  agent           h3  agent
                    flannel.1           flannel.1           flannel.1       overlay 10.42.0.0/16, MTU 1450
                    cni0 10.42.a.1/24   cni0 10.42.b.1/24   cni0 10.42.c.1/24
                       │                   │                   │
    namespace       h1c1 eth0 .2        h2c1 eth0 .2        h3c1 eth0 .2    containers

It is not a simulation: every device, packet and process is real; only the machines share one kernel. Nothing is
made outside namespaces, /run/netns and /run/flanneld-py-lab/<run>/, and all of it goes when the lab ends.

    topology.py   the plan: names, addresses, sizes                     (pure)
    run.py        one run's name and directory; removes what dead runs left
    processes.py  which processes live in a namespace, and their end
    namespace.py  one network namespace
    host.py       a host and its containers
    agent.py      one agent process
    etcd.py       one etcd process
    manual.py     the same overlay by hand with `ip` and `bridge`: the yardstick
    lab.py        all of it together
    measure.py    ping and iperf3                    report.py  the table   (pure)
    __main__.py   `python -m tests.lab`

With real container engines in place of containers made by hand:

    docker.py podman.py   the engine of one host      remains.py   what a killed one leaves, and its end
    engine.py     `python -m tests.lab.engine docker|lxc|podman`
"""
