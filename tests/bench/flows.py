"""A program of its own, run in a container: bursts of little datagrams, one flow that floods, and polite ones.

flows.py reader ADDRESS                     says its port; at a line on stdin, how many datagrams it has read
flows.py bursts ADDRESS PORT HOW            20 bursts of 1024 datagrams; HOW is plain or segmented
flows.py echo ADDRESS                       says its port, and sends back what comes
flows.py flood ADDRESS PORT                 one flow, 60 datagrams a call, until killed
flows.py polite ADDRESS PORT SECONDS        16 flows of 50 datagrams a second; says the worst one's loss, and the
                                            99th percentile of the round trips in milliseconds
"""

from __future__ import annotations

import select
import socket
import sys
import time

SIZE = 64
BURSTS, BURST, PAUSE = 20, 1024, 0.05
FLOWS, INTERVAL, LATE = 16, 0.02, 0.5
UDP_SEGMENT = 103
AT_ONCE = 60


def reader(address: str) -> None:
    with _bound(address) as inlet:
        while True:
            inlet.recv(SIZE)


def bursts(address: str, port: int, how: str) -> None:
    with _connected(address, port) as out:
        if how == "segmented":
            out.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        together = 64 if how == "segmented" else 1
        for _ in range(BURSTS):
            for _ in range(BURST // together):
                out.send(bytes(SIZE * together))
            time.sleep(PAUSE)


def echo(address: str) -> None:
    with _bound(address) as inlet:
        while True:
            data, sender = inlet.recvfrom(SIZE)
            inlet.sendto(data, sender)


def flood(address: str, port: int) -> None:
    with _connected(address, port) as out:
        out.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        while True:
            try:
                out.send(bytes(SIZE * AT_ONCE))
            except ConnectionRefusedError:
                continue


def polite(address: str, port: int, seconds: float) -> None:
    flows = [_connected(address, port) for _ in range(FLOWS)]
    sent = dict.fromkeys(flows, 0)
    took: dict[socket.socket, list[float]] = {flow: [] for flow in flows}
    due = time.perf_counter()
    end = due + seconds
    while (now := time.perf_counter()) < end + LATE:
        if due <= now < end:
            for flow in flows:
                flow.send(f"{now}".encode())
                sent[flow] += 1
            due += INTERVAL
        ready, _, _ = select.select(flows, [], [], max(0, min(due if due < end else end + LATE, end + LATE) - now))
        for flow in ready:
            took[flow].append(time.perf_counter() - float(flow.recv(SIZE)))
    worst = max(1 - len(took[flow]) / sent[flow] for flow in flows)
    trips = sorted(trip for each in took.values() for trip in each) or [float("inf")]
    print(worst, 1000 * trips[len(trips) * 99 // 100])


def _bound(address: str) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((address, 0))
    print(bound.getsockname()[1], flush=True)
    return bound


def _connected(address: str, port: int) -> socket.socket:
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connected.connect((address, port))
    return connected


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["reader", address]:
            reader(address)
        case ["bursts", address, port, how]:
            bursts(address, int(port), how)
        case ["echo", address]:
            echo(address)
        case ["flood", address, port]:
            flood(address, int(port))
        case ["polite", address, port, seconds]:
            polite(address, int(port), float(seconds))
