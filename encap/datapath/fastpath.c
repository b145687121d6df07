/* The fast path: packets to and from peers that are known pass without the interpreter.

   wait -> device readable: a packet alone, or super-packets; destination known -> encapsulated, sent
        -> wire readable:   datagrams of flows that were admitted before        -> merged, written to the device
        -> all else: relay.py is called, which goes the long way

   An interpreter that slept has cold caches: its first turn takes longer than all else on a packet's way. Nothing is
   decided here. Who a destination belongs to and what may come in are looked up in the dictionaries that forward.py
   and admission.py fill; what is in neither goes the long way. The order of things, and how much is done before others
   have their turn, are relay.py's. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../packet/packet.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { MOST_LANES = 32, MOST_EVENTS = 2 * MOST_LANES + 4 }; /* device and wire of each, and what is not ours */
enum { SHARE = 1 << 18, LITTLE = 1 << 14, MOST = 64 }; /* see relay.py */
enum { CROWDED = 256, AHEAD = 4 * MOST, FEW = 8, BUCKETS = 256, LATELY = 1 << 22, COPIED = 16 }; /* see Crowds */
enum { PAGES = 1 << 16 };                                                 /* bytes, a multiple of every page's size */
enum { MAX_SEGMENTS = 64, MAX_PAYLOAD = 65507, RECEIVE_SIZE = 65535 };    /* see wire.py */

/* A lane's descriptors, and what is called there: outward, admit, failed, overflowed. */
struct lane {
    int device, wire, sender, udp;
    PyObject *outward, *admit, *failed, *overflowed;
};

/* How crowded a queue is: packets since it was last seen empty, what had found it full when that was last asked; the
   cost of what came lately, of all and by flow; and what is held: from where to where in the hold, packets by flow. Flows
   share buckets by chance (stochastic fair queueing). */
struct crowd {
    size_t standing, overflowed, charged, head, tail;
    uint32_t charges[BUCKETS], held[BUCKETS];
};

/* What is remembered from call to call, in a buffer of Python's that is zero at first: of each lane's device and wire. */
struct notes {
    struct crowd crowds[2 * MOST_LANES];
};

/* What was received: bytes in all, bytes of each datagram, ECN codepoint, and from whom. */
struct receipt {
    ssize_t total;
    int each, codepoint;
    union {
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } from;
};

/* All lanes, and the buffers that they share; each queue has `hold` bytes of `holds`. `asked` is whether relay.py was called: what was handed in may have
   changed. */
struct fastpath {
    int epoll, segmentation, asked;
    byte *from_device, *from_wire, *holds;
    size_t hold;
    struct notes *notes;
    Py_ssize_t count;
    struct lane lanes[MOST_LANES];
    PyObject *known, *admitted;
    Py_ssize_t offset, mtu;
};

/* Note that relay.py was called, and whether that went well. */
static int asked(struct fastpath *fastpath, PyObject *answer)
{
    fastpath->asked = 1;
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

static int failed(struct fastpath *fastpath, const struct lane *lane, const char *where, int number, size_t count)
{
    return asked(fastpath, PyObject_CallFunction(lane->failed, "sin", where, number, (Py_ssize_t)count));
}

/* The attributes of directory.Hop and of its Counters, interned: so they are found by their addresses. */
enum name { SOCKET_ADDRESS, PREFIX4, PREFIX6, MTU, TALLY, SENT, SENT_BYTES, RECEIVED, RECEIVED_BYTES, NAMES };
static PyObject *names[NAMES];

int express_prepare(void)
{
    static const char *texts[NAMES] = {"socket_address", "prefix4",    "prefix6",  "mtu",           "tally",
                                       "sent",           "sent_bytes", "received", "received_bytes"};
    for (int name = 0; name < NAMES; name++)
        if (!names[name] && !(names[name] = PyUnicode_InternFromString(texts[name])))
            return -1;
    return 0;
}

/* Count one packet: `packets` is SENT or RECEIVED, its bytes come next. */
static int count_one(PyObject *hop, enum name packets, size_t length)
{
    PyObject *tally = PyObject_GetAttr(hop, names[TALLY]);
    size_t more[] = {1, length};
    int done = tally ? 0 : -1;
    for (int i = 0; !done && i < 2; i++) {
        PyObject *before = PyObject_GetAttr(tally, names[packets + i]), *step = PyLong_FromSize_t(more[i]);
        PyObject *after = before && step ? PyNumber_Add(before, step) : NULL;
        done = after ? PyObject_SetAttr(tally, names[packets + i], after) : -1;
        Py_XDECREF(before);
        Py_XDECREF(step);
        Py_XDECREF(after);
    }
    Py_XDECREF(tally);
    return done;
}

/* Outward */

/* Who a packet from the device goes to, and how: borrowed from directory.Hop as long as `hop` is held. */
struct route {
    PyObject *hop, *prefix, *to;
    size_t mtu;
    struct iovec head;
    struct msghdr message;
    int codepoint;
    union {
        char room[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
};

static void leave(struct route *route)
{
    Py_XDECREF(route->hop);
    Py_XDECREF(route->prefix);
    Py_XDECREF(route->to);
}

/* Look up where a packet goes. Returns whether it is known, -1 with an exception. */
static int find_route(struct fastpath *fastpath, const byte *packet, size_t length, struct route *route)
{
    size_t width;
    const byte *to = destination(packet, length, &width);
    char *head, *address;
    Py_ssize_t head_length, address_length;
    PyObject *mtu;
    memset(route, 0, sizeof *route);
    if (!to)
        return 0;
    PyObject *key = PyBytes_FromStringAndSize((const char *)to, (Py_ssize_t)width);
    route->hop = key ? PyDict_GetItemWithError(fastpath->known, key) : NULL;
    Py_XDECREF(key);
    if (!route->hop)
        return PyErr_Occurred() ? -1 : 0;
    Py_INCREF(route->hop);
    route->prefix = PyObject_GetAttr(route->hop, names[width == 4 ? PREFIX4 : PREFIX6]);
    route->to = PyObject_GetAttr(route->hop, names[SOCKET_ADDRESS]);
    mtu = PyObject_GetAttr(route->hop, names[MTU]);
    route->mtu = mtu ? PyLong_AsSize_t(mtu) : 0;
    Py_XDECREF(mtu);
    if (PyErr_Occurred())
        return -1;
    if (!route->prefix || !route->to || PyBytes_AsStringAndSize(route->prefix, &head, &head_length) ||
        PyBytes_AsStringAndSize(route->to, &address, &address_length))
        return -1;
    route->codepoint = marking(packet, length);
    route->head = (struct iovec){head, (size_t)head_length};
    route->message = (struct msghdr){.msg_name = address, .msg_namelen = (socklen_t)address_length};
    return 1;
}

static void add_control(struct route *route, int level, int type, const void *value, size_t length)
{
    struct cmsghdr *about = (struct cmsghdr *)(void *)(route->control.room + route->message.msg_controllen);
    *about = (struct cmsghdr){.cmsg_len = CMSG_LEN(length), .cmsg_level = level, .cmsg_type = type};
    memcpy(CMSG_DATA(about), value, length);
    route->message.msg_control = route->control.room;
    route->message.msg_controllen += CMSG_SPACE(length);
}

/* Send what the parts hold, as datagrams of `size` bytes, 0: as one. Returns whether the kernel took it. */
static int send_parts(const struct lane *lane, struct route *route, struct iovec *parts, size_t count, size_t size)
{
    uint16_t each = (uint16_t)size;
    sa_family_t family;
    memcpy(&family, (const char *)route->message.msg_name + offsetof(struct sockaddr, sa_family), sizeof family);
    route->message.msg_iov = parts;
    route->message.msg_iovlen = count;
    route->message.msg_controllen = 0;
    if (each)
        add_control(route, IPPROTO_UDP, UDP_SEGMENT, &each, sizeof each);
    if (route->codepoint)
        add_control(route, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, family == AF_INET ? IP_TOS : IPV6_TCLASS,
                    &route->codepoint, sizeof route->codepoint);
    return sendmsg(lane->sender, &route->message, MSG_DONTWAIT) >= 0;
}

/* Send a plain packet, in the buffer from the virtio header on. Returns whether the kernel took it. */
static int send_alone(const struct lane *lane, struct route *route, const struct vnet *vnet, byte *packet, size_t length)
{
    size_t field = (size_t)vnet->start + vnet->offset;
    if (vnet->flags & NEEDS_CSUM) {
        if (field + 2 > length)
            return 0;
        finish(packet + field, add(0, packet + vnet->start, length - vnet->start), 1);
        memset(packet - sizeof *vnet, 0, sizeof *vnet); /* Should it go the long way after all: it is finished. */
    }
    struct iovec parts[] = {route->head, {packet, length}};
    return send_parts(lane, route, parts, 2, 0);
}

/* Cut a super-packet and send it. Returns whether it is done with, -1 with an exception. */
static int send_super(struct fastpath *fastpath, const struct lane *lane, struct route *route, const struct vnet *vnet,
                      const struct layout *is, const byte *packet, size_t length)
{
    static byte datagrams[4 * MAX_PACKET];
    struct cuts cuts = plan_cuts(vnet, is, length, route->head.iov_len);
    size_t total = cuts.total, size = cuts.size;
    size_t fit = MAX_PAYLOAD / size < MAX_SEGMENTS ? MAX_PAYLOAD / size : MAX_SEGMENTS;
    if (!fit || total > sizeof datagrams)
        return 0;
    cut_all(datagrams, route->head.iov_base, route->head.iov_len, packet, is, &cuts);
    for (size_t at = 0; at < total; at += fit * size) {
        size_t part = total - at < fit * size ? total - at : fit * size;
        if (send_parts(lane, route, &(struct iovec){datagrams + at, part}, 1, size))
            continue;
        if (!at)
            return 0; /* Why, and what to do about it, is found out on the long way. */
        if (failed(fastpath, lane, "out-wire", errno, (part + size - 1) / size))
            return -1;
    }
    return 1;
}

/* Send the packet at the beginning of the buffer, and charge it. Returns whether it is done with, -1 with an exception. */
static int dispatch(struct fastpath *fastpath, const struct lane *lane, size_t size, int first, size_t *charged)
{
    struct vnet vnet;
    struct route route;
    byte *packet = fastpath->from_device + sizeof vnet;
    if (size <= sizeof vnet)
        return 0;
    size_t length = size - sizeof vnet, largest = length;
    struct layout is = {0};
    memcpy(&vnet, fastpath->from_device, sizeof vnet);
    int plain = vnet.type == GSO_NONE;
    *charged += cost(size, plain ? 0 : vnet.size);
    if (plain ? !first : !fastpath->segmentation)
        return 0; /* Plain packets in a row go together, in few sends. */
    if (!plain) {
        if (!read_super(packet, length, &vnet, vnet.type & ~GSO_ECN, &is))
            return 0;
        if (is.header + vnet.size < length)
            largest = is.header + vnet.size;
    }
    if (largest > (size_t)fastpath->mtu)
        return 0;
    int done = find_route(fastpath, packet, length, &route);
    if (done > 0 && largest > route.mtu)
        done = 0;
    if (done > 0)
        done = plain ? send_alone(lane, &route, &vnet, packet, length)
                     : send_super(fastpath, lane, &route, &vnet, &is, packet, length);
    if (done > 0 && count_one(route.hop, SENT, length))
        done = -1;
    leave(&route);
    return done;
}

/* Crowds: a queue that was not empty for a while, and that packets find full, is read on ahead of what can be sent. UDP
   flows with more than their part of it are held, and take their turns after all others; what is more than the hold
   takes is dropped, which is quicker than to carry it. So the queue is full for nobody else, and who sends too much
   loses that alone. It lasts until nothing is held. TCP slows down by itself, and what does not overflow may wait. */

/* What goes before a packet in the hold. */
struct held {
    size_t length, bucket;
    struct receipt receipt;
};

static int waits(const struct crowd *crowd) { return crowd->head < crowd->tail; }

/* Note a packet and what it costs; return its flow's bucket. */
static size_t join(struct crowd *crowd, uint64_t flow, size_t charge)
{
    size_t bucket = flow >> 56;
    crowd->standing++;
    crowd->charges[bucket] += (uint32_t)charge;
    crowd->charged += charge;
    if (crowd->charged > LATELY) {
        crowd->charged = 0;
        for (size_t i = 0; i < BUCKETS; i++)
            crowd->charged += crowd->charges[i] /= 2;
    }
    return bucket;
}

static void emptied(struct crowd *crowd)
{
    crowd->standing = 0;
    if (crowd->charged && !waits(crowd)) {
        crowd->charged = 0;
        memset(crowd->charges, 0, sizeof crowd->charges);
    }
}

/* Tell whether packets found a queue full since this was last asked; it is not asked each turn. */
static int proven(struct crowd *crowd, size_t overflowed)
{
    int more = overflowed > crowd->overflowed;
    crowd->overflowed = overflowed;
    crowd->standing = 0;
    return more;
}

/* Tell whether a packet is of a flow of UDP that has more than its part, or that is held: its packets stay in order. */
static int crowds(const struct crowd *crowd, size_t bucket, const byte *packet, size_t length)
{
    return length >= 20 && packet[packet[0] >> 4 == 4 ? 9 : 6] == UDP &&
           (crowd->held[bucket] || (size_t)crowd->charges[bucket] * FEW > crowd->charged);
}

static byte *hold_of(const struct fastpath *fastpath, const struct crowd *crowd)
{
    return fastpath->holds + (size_t)(crowd - fastpath->notes->crowds) * fastpath->hold;
}

static struct crowd *at_device(const struct fastpath *fastpath, const struct lane *lane)
{
    return &fastpath->notes->crowds[2 * (lane - fastpath->lanes)];
}

static struct crowd *at_wire(const struct fastpath *fastpath, const struct lane *lane) { return at_device(fastpath, lane) + 1; }

/* Hold a packet. Returns whether there was room. */
static int put_held(struct fastpath *fastpath, struct crowd *crowd, const struct held *held, const byte *packet)
{
    byte *hold = hold_of(fastpath, crowd);
    size_t need = sizeof *held + held->length;
    if (crowd->tail + need > fastpath->hold && crowd->head > fastpath->hold / 4) {
        memmove(hold, hold + crowd->head, crowd->tail - crowd->head);
        crowd->tail -= crowd->head;
        crowd->head = 0;
    }
    if (crowd->tail + need > fastpath->hold)
        return 0;
    memcpy(hold + crowd->tail, held, sizeof *held);
    memcpy(hold + crowd->tail + sizeof *held, packet, held->length);
    crowd->tail += need;
    crowd->held[held->bucket]++;
    return 1;
}

/* Take the packet that was held first. With the last one the memory goes back to the kernel. */
static void take_held(struct fastpath *fastpath, struct crowd *crowd, struct held *held, byte *packet)
{
    byte *hold = hold_of(fastpath, crowd);
    memcpy(held, hold + crowd->head, sizeof *held);
    memcpy(packet, hold + crowd->head + sizeof *held, held->length);
    crowd->head += sizeof *held + held->length;
    crowd->held[held->bucket]--;
    if (!waits(crowd)) {
        crowd->head = crowd->tail = 0;
        madvise(hold, fastpath->hold, MADV_DONTNEED);
    }
}

static ssize_t read_device(struct fastpath *fastpath, const struct lane *lane)
{
    ssize_t size = read(lane->device, fastpath->from_device, sizeof(struct vnet) + MAX_PACKET);
    if (size < 0 && errno == EAGAIN) {
        emptied(at_device(fastpath, lane));
        return -1;
    }
    return size > 0 ? size : 0;
}

/* Note the packet that was read; return its flow's bucket. */
static size_t join_device(struct fastpath *fastpath, const struct lane *lane, size_t size, struct vnet *vnet)
{
    size_t length = size > sizeof *vnet ? size - sizeof *vnet : 0;
    memcpy(vnet, fastpath->from_device, sizeof *vnet);
    return join(at_device(fastpath, lane), flow_of(fastpath->from_device + sizeof *vnet, length),
                cost(size, vnet->type ? vnet->size : 0));
}

/* Leave the packet that was read to relay.py, and what it reads after it, together `most`. */
static int leave_to_relay(struct fastpath *fastpath, const struct lane *lane, size_t size, int most)
{
    return asked(fastpath, PyObject_CallFunction(lane->outward, "ni", (Py_ssize_t)size, most));
}

static int send_any(struct fastpath *fastpath, const struct lane *lane, size_t size, size_t *charged)
{
    int done = size ? dispatch(fastpath, lane, size, 1, charged) : 0;
    return done < 0 || (!done && leave_to_relay(fastpath, lane, size, 1)) ? -1 : 0;
}

static int serve_crowded_device(struct fastpath *fastpath, const struct lane *lane)
{
    struct crowd *crowd = at_device(fastpath, lane);
    const byte *packet = fastpath->from_device + sizeof(struct vnet);
    size_t charged = 0, dropped = 0;
    ssize_t size;
    for (int taken = 0; taken < AHEAD && charged < SHARE / 2 && (size = read_device(fastpath, lane)) >= 0; taken++) {
        struct vnet vnet;
        struct held held = {.length = (size_t)size, .bucket = join_device(fastpath, lane, (size_t)size, &vnet)};
        size_t length = held.length > sizeof vnet ? held.length - sizeof vnet : 0;
        if (crowds(crowd, held.bucket, packet, length)) {
            dropped += put_held(fastpath, crowd, &held, fastpath->from_device) ? 0 : segments(&vnet, length);
            charged += held.length / COPIED;
        } else if (send_any(fastpath, lane, held.length, &charged)) {
            return -1;
        }
    }
    while (waits(crowd) && charged < SHARE) {
        struct held held;
        take_held(fastpath, crowd, &held, fastpath->from_device);
        if (send_any(fastpath, lane, held.length, &charged))
            return -1;
    }
    return dropped ? failed(fastpath, lane, "out-flood", 0, dropped) : 0;
}

/* Tell whether the device's queue is crowded, and overflows. Returns -1 with an exception. */
static int crowded_device(struct fastpath *fastpath, const struct lane *lane)
{
    struct crowd *crowd = at_device(fastpath, lane);
    if (crowd->standing < CROWDED)
        return 0;
    PyObject *told = PyObject_CallObject(lane->overflowed, NULL);
    size_t overflowed = told ? PyLong_AsSize_t(told) : 0;
    Py_XDECREF(told);
    fastpath->asked = 1;
    return PyErr_Occurred() ? -1 : proven(crowd, overflowed);
}

static int serve_device(struct fastpath *fastpath, const struct lane *lane)
{
    size_t charged = 0;
    int crowded;
    for (int taken = 0; taken < MOST && charged < SHARE; taken++) {
        struct vnet vnet;
        ssize_t size = read_device(fastpath, lane);
        if (size < 0)
            return 0;
        join_device(fastpath, lane, (size_t)size, &vnet);
        int done = size ? dispatch(fastpath, lane, (size_t)size, !taken, &charged) : 0;
        if (done <= 0)
            return done ? -1 : leave_to_relay(fastpath, lane, (size_t)size, MOST);
    }
    crowded = crowded_device(fastpath, lane);
    return crowded > 0 ? serve_crowded_device(fastpath, lane) : crowded;
}

/* Inward */

static ssize_t receive(struct fastpath *fastpath, const struct lane *lane, size_t at, struct receipt *receipt)
{
    union {
        char room[2 * CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec whole = {fastpath->from_wire + at, RECEIVE_SIZE};
    struct msghdr message = {
        .msg_name = &receipt->from,
        .msg_namelen = sizeof receipt->from,
        .msg_iov = &whole,
        .msg_iovlen = 1,
        .msg_control = control.room,
        .msg_controllen = sizeof control.room,
    };
    memset(&receipt->from, 0, sizeof receipt->from);
    receipt->total = recvmsg(lane->wire, &message, MSG_DONTWAIT);
    receipt->each = (int)receipt->total;
    receipt->codepoint = NOT_ECT;
    if (receipt->total >= 0)
        for (struct cmsghdr *about = CMSG_FIRSTHDR(&message); about; about = CMSG_NXTHDR(&message, about)) {
            if (about->cmsg_level == IPPROTO_UDP && about->cmsg_type == UDP_GRO)
                memcpy(&receipt->each, CMSG_DATA(about), sizeof receipt->each);
            else if (about->cmsg_level == IPPROTO_IP && about->cmsg_type == IP_TOS)
                receipt->codepoint = *CMSG_DATA(about) & CE;
            else if (about->cmsg_level == IPPROTO_IPV6 && about->cmsg_type == IPV6_TCLASS) {
                memcpy(&receipt->codepoint, CMSG_DATA(about), sizeof receipt->codepoint);
                receipt->codepoint &= CE;
            }
        }
    return receipt->total;
}

static int is_ipv4(const struct receipt *receipt) { return receipt->from.v4.sin_family == AF_INET; }

/* Return who sent a datagram if its flow was admitted before: borrowed, NULL without an exception if it was not. */
static PyObject *admitted(struct fastpath *fastpath, const struct receipt *run, const byte *datagram, size_t size)
{
    const byte *packet = datagram + fastpath->offset;
    const void *from = is_ipv4(run) ? (const void *)&run->from.v4.sin_addr : (const void *)&run->from.v6.sin6_addr;
    size_t length = size - (size_t)fastpath->offset, at, width;
    if (length >= 20 && packet[0] == 0x45 && get16(packet + 2) == length && packet[8])
        at = 12, width = 8;
    else if (length >= 40 && packet[0] >> 4 == 6 && get16(packet + 4) + 40u == length && packet[7])
        at = 8, width = 32;
    else
        return NULL;
    /* The key is admission.py's. */
    PyObject *flow = Py_BuildValue("(y#y#y#)", (const char *)from, (Py_ssize_t)(is_ipv4(run) ? 4 : 16),
                                   (const char *)datagram, fastpath->offset, (const char *)packet + at,
                                   (Py_ssize_t)width);
    PyObject *hop = flow ? PyDict_GetItemWithError(fastpath->admitted, flow) : NULL;
    Py_XDECREF(flow);
    return hop;
}

static PyObject *endpoint(const struct receipt *receipt)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (is_ipv4(receipt)) {
        inet_ntop(AF_INET, &receipt->from.v4.sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, ntohs(receipt->from.v4.sin_port));
    }
    inet_ntop(AF_INET6, &receipt->from.v6.sin6_addr, text, sizeof text);
    return Py_BuildValue("(si)", text, ntohs(receipt->from.v6.sin6_port));
}

/* Tell whether what is told as datagrams may be one, by what the first packet says of its length: relay.py looks
   closer, see encap/packet/partial.py. */
static int perhaps_uncut(struct fastpath *fastpath, const byte *datagram, size_t whole)
{
    const byte *packet = datagram + fastpath->offset;
    size_t length = whole - (size_t)fastpath->offset;
    return whole > (size_t)fastpath->offset + 20 &&
           (packet[0] >> 4 == 4 ? get16(packet + 2) : 40u + get16(packet + 4)) == length;
}

/* Deliver what was received in a row, from `at` to `end` in the buffer. Returns -1 with an exception. */
static int deliver(struct fastpath *fastpath, const struct lane *lane, size_t at, size_t end,
                   const struct receipt *run)
{
    byte *buffer = fastpath->from_wire;
    size_t size = (size_t)run->each, offset = (size_t)fastpath->offset;
    int closer = end - at > size && perhaps_uncut(fastpath, buffer + at, end - at);
    int marked = run->codepoint == ECT1 || run->codepoint == CE;
    do {
        size_t have = end - at < size ? end - at : size, length;
        PyObject *hop = closer || have <= offset ? NULL : admitted(fastpath, run, buffer + at, have);
        if (PyErr_Occurred())
            return -1;
        if (!hop)
            return asked(fastpath, PyObject_CallFunction(lane->admit, "nnnNi", (Py_ssize_t)at, (Py_ssize_t)end,
                                                        (Py_ssize_t)size, endpoint(run), marked ? run->codepoint : 0));
        if (marked) {
            size_t lost;
            end = combine(buffer, at, end, size, offset, run->codepoint, &lost);
            marked = 0;
            if (lost && failed(fastpath, lane, "in-ecn", 0, lost))
                return -1;
            continue;
        }
        struct vnet vnet;
        size_t next = take_packet(buffer, end, at, size, offset, (size_t)fastpath->mtu, lane->udp, &length, &vnet);
        struct iovec parts[] = {{&vnet, sizeof vnet}, {buffer + at + offset, length}};
        Py_INCREF(hop);
        int written = writev(lane->device, parts, 2) >= 0;
        int wrong = written ? count_one(hop, RECEIVED, length) : failed(fastpath, lane, "in-device", errno, segments(&vnet, length));
        Py_DECREF(hop);
        if (wrong)
            return -1;
        at = next;
    } while (at < end);
    return 0;
}

/* Tell whether a receipt at `at` goes on where those of the same sender from `begin` on ended, as Relay._continues does. */
static int continues(struct fastpath *fastpath, const struct receipt *run, size_t begin, size_t at,
                     const struct receipt *next)
{
    const byte *buffer = fastpath->from_wire;
    size_t length = at - begin, size = (size_t)run->each;
    int fits = next->each == run->each || (next->each == next->total && next->total < run->each);
    if (!fits || length % size || run->each > fastpath->mtu + fastpath->offset || run->codepoint != next->codepoint ||
        memcmp(&run->from, &next->from, sizeof run->from))
        return 0;
    return !(length > size && perhaps_uncut(fastpath, buffer + begin, length)) &&
           !(next->total > next->each && perhaps_uncut(fastpath, buffer + at, (size_t)next->total));
}

/* Return how many datagrams have found a socket's buffer full. */
static size_t lost_at(int wire)
{
    uint32_t told[9] = {0}; /* linux/sock_diag.h: SK_MEMINFO_DROPS is the last */
    socklen_t size = sizeof told;
    return getsockopt(wire, SOL_SOCKET, SO_MEMINFO, told, &size) || size < sizeof told ? 0 : told[8];
}

/* Give the first of the datagrams that were received at `at`: the inner packet, and its bytes. */
static const byte *inner(struct fastpath *fastpath, size_t at, const struct receipt *receipt, size_t *length)
{
    size_t have = (size_t)(receipt->each < receipt->total ? receipt->each : receipt->total), offset = (size_t)fastpath->offset;
    *length = have > offset ? have - offset : 0;
    return fastpath->from_wire + at + offset;
}

/* Return a number for the flow of what was received: of the inner packet and of who sent it, so that nobody else can pass
   himself off for a flow, to have it dropped. */
static uint64_t flow_from(const struct receipt *receipt, const byte *packet, size_t length)
{
    const byte *from = is_ipv4(receipt) ? (const byte *)&receipt->from.v4.sin_addr : (const byte *)&receipt->from.v6.sin6_addr;
    uint64_t flow = flow_of(packet, length);
    for (int at = 0; at < (is_ipv4(receipt) ? 4 : 16); at += 4)
        flow = (flow + get32(from + at)) * GOLDEN;
    return flow;
}

/* Note what was received at `at`; return its flow's bucket, and the inner packet. */
static size_t join_wire(struct fastpath *fastpath, struct crowd *crowd, size_t at, const struct receipt *receipt,
                        const byte **packet, size_t *length)
{
    *packet = inner(fastpath, at, receipt, length);
    return join(crowd, flow_from(receipt, *packet, *length), cost((size_t)receipt->total, (size_t)receipt->each));
}

static int serve_crowded_wire(struct fastpath *fastpath, const struct lane *lane)
{
    struct crowd *crowd = at_wire(fastpath, lane);
    struct held held;
    size_t charged = 0, dropped = 0, length;
    const byte *packet;
    for (int taken = 0; taken < AHEAD && charged < SHARE / 2; taken++) {
        if (receive(fastpath, lane, 0, &held.receipt) < 0) {
            if (errno != EAGAIN && failed(fastpath, lane, "in-wire", errno, 1))
                return -1;
            emptied(crowd);
            break;
        }
        held.length = (size_t)held.receipt.total;
        held.bucket = join_wire(fastpath, crowd, 0, &held.receipt, &packet, &length);
        if (crowds(crowd, held.bucket, packet, length)) {
            size_t each = (size_t)held.receipt.each;
            dropped += put_held(fastpath, crowd, &held, fastpath->from_wire) ? 0 : (held.length + each - 1) / each;
            charged += held.length / COPIED;
            continue;
        }
        charged += cost(held.length, (size_t)held.receipt.each);
        if (deliver(fastpath, lane, 0, held.length, &held.receipt))
            return -1;
    }
    while (waits(crowd) && charged < SHARE) {
        take_held(fastpath, crowd, &held, fastpath->from_wire);
        charged += cost(held.length, (size_t)held.receipt.each);
        if (deliver(fastpath, lane, 0, held.length, &held.receipt))
            return -1;
    }
    return dropped ? failed(fastpath, lane, "in-flood", 0, dropped) : 0;
}

static int serve_wire(struct fastpath *fastpath, const struct lane *lane)
{
    struct crowd *crowd = at_wire(fastpath, lane);
    struct receipt run, next;
    size_t begin = 0, at = 0, charged = 0, length;
    const byte *packet;
    int more = 1;
    for (int taken = 0; taken < MOST && charged <= SHARE; taken++) {
        if (receive(fastpath, lane, at, &next) < 0) {
            if (errno != EAGAIN && failed(fastpath, lane, "in-wire", errno, 1))
                return -1;
            emptied(crowd);
            more = 0;
            break;
        }
        join_wire(fastpath, crowd, at, &next, &packet, &length);
        charged += cost((size_t)next.total, (size_t)next.each);
        if (at > begin && !(next.total && continues(fastpath, &run, begin, at, &next))) {
            if (deliver(fastpath, lane, begin, at, &run))
                return -1;
            begin = at;
        }
        if (!next.total || (!taken && next.total < LITTLE)) {
            /* A datagram of nothing is counted; a little one that comes first does not wait for others. */
            if (deliver(fastpath, lane, at, at + (size_t)next.total, &next))
                return -1;
            continue;
        }
        if (at == begin)
            run = next;
        at += (size_t)next.total;
    }
    if (at > begin && deliver(fastpath, lane, begin, at, &run))
        return -1;
    if (more && crowd->standing >= CROWDED && proven(crowd, lost_at(lane->wire)))
        return serve_crowded_wire(fastpath, lane);
    return 0;
}

/* The loop */

/* Serve what is held, whether more has come or not. */
static int serve_held(struct fastpath *fastpath)
{
    for (Py_ssize_t i = 0; i < fastpath->count; i++) {
        const struct lane *lane = &fastpath->lanes[i];
        if ((waits(at_device(fastpath, lane)) && serve_crowded_device(fastpath, lane)) ||
            (waits(at_wire(fastpath, lane)) && serve_crowded_wire(fastpath, lane)))
            return -1;
    }
    return 0;
}

static int anything_waits(const struct fastpath *fastpath)
{
    for (Py_ssize_t i = 0; i < 2 * fastpath->count; i++)
        if (waits(&fastpath->notes->crowds[i]))
            return 1;
    return 0;
}

/* Serve a descriptor of a lane. Returns whether it is one, -1 with an exception. */
static int serve(struct fastpath *fastpath, int fd)
{
    for (Py_ssize_t i = 0; i < fastpath->count; i++) {
        const struct lane *lane = &fastpath->lanes[i];
        if (fd == lane->device)
            return !waits(at_device(fastpath, lane)) && serve_device(fastpath, lane) ? -1 : 1;
        if (fd == lane->wire)
            return !waits(at_wire(fastpath, lane)) && serve_wire(fastpath, lane) ? -1 : 1;
    }
    return 0;
}

static int add_ready(PyObject *ready, int fd)
{
    PyObject *item = PyLong_FromLong(fd);
    int failed = !item || PyList_Append(ready, item);
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static PyObject *wait_all(struct fastpath *fastpath)
{
    struct epoll_event events[MOST_EVENTS];
    PyObject *ready = PyList_New(0);
    fastpath->asked = 0;
    while (ready && !PyList_Size(ready) && !fastpath->asked) {
        int count, served = 0, patience = anything_waits(fastpath) ? 0 : -1;
        Py_BEGIN_ALLOW_THREADS;
        count = epoll_wait(fastpath->epoll, events, MOST_EVENTS, patience);
        Py_END_ALLOW_THREADS;
        if (count < 0 && errno != EINTR)
            PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_Occurred() || (count < 0 && PyErr_CheckSignals()))
            served = -1;
        for (int i = 0; served >= 0 && i < count; i++) {
            served = serve(fastpath, events[i].data.fd);
            if (!served)
                served = add_ready(ready, events[i].data.fd);
        }
        if (served < 0 || serve_held(fastpath))
            Py_CLEAR(ready);
    }
    return ready;
}

static int take_lane(PyObject *described, struct lane *lane)
{
    return PyArg_ParseTuple(described, "iiipOOOO", &lane->device, &lane->wire, &lane->sender, &lane->udp,
                            &lane->outward, &lane->admit, &lane->failed, &lane->overflowed);
}

PyObject *express_wait(PyObject *self, PyObject *args)
{
    struct fastpath fastpath = {.count = 0};
    Py_buffer from_device, from_wire, notes, holds;
    PyObject *lanes, *ready = NULL;
    Py_ssize_t wanted;
    (void)self;
    if (!PyArg_ParseTuple(args, "iO!w*w*w*w*O!O!nnp", &fastpath.epoll, &PyTuple_Type, &lanes, &from_device, &from_wire,
                          &notes, &holds, &PyDict_Type, &fastpath.known, &PyDict_Type, &fastpath.admitted, &fastpath.offset, &fastpath.mtu,
                          &fastpath.segmentation))
        return NULL;
    fastpath.from_device = from_device.buf;
    fastpath.from_wire = from_wire.buf;
    fastpath.notes = notes.buf;
    fastpath.holds = holds.buf;
    wanted = PyTuple_Size(lanes);
    fastpath.hold = wanted ? (size_t)(holds.len / (2 * wanted)) / PAGES * PAGES : 0;
    if (wanted > MOST_LANES || fastpath.offset < 0 || fastpath.mtu < 0)
        PyErr_SetString(PyExc_ValueError, "expected at most 32 lanes, and sizes that are positive");
    else if (from_device.len < (Py_ssize_t)sizeof(struct vnet) + MAX_PACKET || from_wire.len < SHARE + 2 * RECEIVE_SIZE ||
             notes.len < (Py_ssize_t)sizeof(struct notes))
        PyErr_SetString(PyExc_ValueError, "the buffers are too small");
    else
        while (fastpath.count < wanted && take_lane(PyTuple_GetItem(lanes, fastpath.count), &fastpath.lanes[fastpath.count]))
            fastpath.count++;
    if (!PyErr_Occurred())
        ready = wait_all(&fastpath);
    PyBuffer_Release(&from_device);
    PyBuffer_Release(&from_wire);
    PyBuffer_Release(&notes);
    PyBuffer_Release(&holds);
    return ready;
}
