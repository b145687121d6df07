/* The express way: a packet that comes alone, to or from a peer that is known, passes without the interpreter.

   wait -> device readable: one packet, plain, its destination known  -> encapsulated, sent -> wait
        -> wire readable:   one datagram, its flow admitted before    -> written to the device -> wait
        -> all else, and what waits behind the first: handed over to relay.py, which goes the long way

   An interpreter that slept has cold caches: its first turn takes longer than all else on a packet's way. Nothing is
   decided here. Who a destination belongs to and what may come in are looked up in the dictionaries that forward.py
   and admission.py fill; what is in neither, or fails, goes the long way, and is counted there. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "packet.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { MOST_LANES = 16, MOST_EVENTS = 16 };

/* A lane's descriptors, and the buffers that its relay reads into. */
struct lane {
    int device, wire, sender;
    Py_buffer from_device, from_wire;
};

/* What was received: bytes in all, bytes of each datagram, and from whom. */
struct receipt {
    ssize_t total;
    int each;
    struct sockaddr_in6 from; /* or a sockaddr_in, which is smaller */
};

struct express {
    int epoll;
    Py_ssize_t count;
    struct lane lanes[MOST_LANES];
    PyObject *known, *admitted;
    Py_ssize_t offset, mtu;
};

/* The attributes of directory.Hop and of its Tally, interned: so they are found by their addresses. */
enum name { SOCKET_ADDRESS, PREFIX4, PREFIX6, TALLY, SENT, SENT_BYTES, RECEIVED, RECEIVED_BYTES, NAMES };
static PyObject *names[NAMES];

int express_prepare(void)
{
    static const char *texts[NAMES] = {"socket_address", "prefix4",    "prefix6",  "tally",
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

/* Send a packet with what goes before it. Returns whether the kernel took it, -1 with an exception. */
static int encapsulate(int sender, PyObject *hop, enum name prefix_name, byte *packet, size_t length)
{
    PyObject *prefix = PyObject_GetAttr(hop, names[prefix_name]), *to = PyObject_GetAttr(hop, names[SOCKET_ADDRESS]);
    char *head, *address;
    Py_ssize_t head_length, address_length;
    int sent = -1;
    if (prefix && to && !PyBytes_AsStringAndSize(prefix, &head, &head_length) &&
        !PyBytes_AsStringAndSize(to, &address, &address_length)) {
        struct iovec parts[] = {{head, (size_t)head_length}, {packet, length}};
        struct msghdr message = {
            .msg_name = address, .msg_namelen = (socklen_t)address_length, .msg_iov = parts, .msg_iovlen = 2};
        sent = sendmsg(sender, &message, MSG_DONTWAIT) >= 0;
    }
    Py_XDECREF(prefix);
    Py_XDECREF(to);
    return sent;
}

/* Send the packet at the beginning of the buffer. Returns whether it is done with, -1 with an exception. */
static int send_alone(const struct express *express, const struct lane *lane, size_t size)
{
    struct vnet vnet;
    size_t width;
    if (size <= sizeof vnet || size - sizeof vnet > (size_t)express->mtu)
        return 0;
    byte *packet = (byte *)lane->from_device.buf + sizeof vnet;
    size_t length = size - sizeof vnet;
    memcpy(&vnet, lane->from_device.buf, sizeof vnet);
    const byte *to = vnet.type == GSO_NONE ? destination(packet, length, &width) : NULL;
    size_t field = (size_t)vnet.start + vnet.offset;
    int unfinished = vnet.flags & NEEDS_CSUM;
    if (!to || (unfinished && field + 2 > length))
        return 0;
    PyObject *key = PyBytes_FromStringAndSize((const char *)to, (Py_ssize_t)width);
    if (!key)
        return -1;
    PyObject *hop = PyDict_GetItemWithError(express->known, key);
    Py_DECREF(key);
    if (!hop)
        return PyErr_Occurred() ? -1 : 0;
    if (unfinished) {
        finish(packet + field, add(0, packet + vnet.start, length - vnet.start), 1);
        memset(lane->from_device.buf, 0, sizeof vnet); /* Should it go the long way after all: it is finished. */
    }
    Py_INCREF(hop);
    int done = encapsulate(lane->sender, hop, width == 4 ? PREFIX4 : PREFIX6, packet, length);
    if (done > 0 && count_one(hop, SENT, length))
        done = -1;
    Py_DECREF(hop);
    return done;
}

/* Inward */

static ssize_t receive(const struct lane *lane, struct receipt *receipt)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec whole = {lane->from_wire.buf, (size_t)lane->from_wire.len};
    struct msghdr message = {
        .msg_name = &receipt->from,
        .msg_namelen = sizeof receipt->from,
        .msg_iov = &whole,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control,
    };
    receipt->total = recvmsg(lane->wire, &message, MSG_DONTWAIT);
    receipt->each = (int)receipt->total;
    if (receipt->total >= 0)
        for (struct cmsghdr *about = CMSG_FIRSTHDR(&message); about; about = CMSG_NXTHDR(&message, about))
            if (about->cmsg_level == IPPROTO_UDP && about->cmsg_type == UDP_GRO)
                memcpy(&receipt->each, CMSG_DATA(about), sizeof receipt->each);
    return receipt->total;
}

static int is_ipv4(const struct receipt *receipt) { return receipt->from.sin6_family == AF_INET; }

/* Return the key by which admission.py remembers a flow, None if the inner packet is not sound. */
static PyObject *flow_of(const struct express *express, const struct receipt *receipt, const byte *datagram)
{
    const byte *packet = datagram + express->offset;
    const struct sockaddr_in *from4 = (const struct sockaddr_in *)&receipt->from;
    const void *from = is_ipv4(receipt) ? (const void *)&from4->sin_addr : (const void *)&receipt->from.sin6_addr;
    size_t length = (size_t)receipt->total - (size_t)express->offset, at, width;
    if (length >= 20 && packet[0] == 0x45 && get16(packet + 2) == length && packet[8])
        at = 12, width = 8;
    else if (length >= 40 && packet[0] >> 4 == 6 && get16(packet + 4) + 40u == length && packet[7])
        at = 8, width = 32;
    else
        Py_RETURN_NONE;
    return Py_BuildValue("(y#y#y#)", (const char *)from, (Py_ssize_t)(is_ipv4(receipt) ? 4 : 16),
                         (const char *)datagram, express->offset, (const char *)packet + at, (Py_ssize_t)width);
}

/* Write the datagram at the beginning of the buffer to the device. Returns as send_alone. */
static int deliver_alone(const struct express *express, const struct lane *lane, const struct receipt *receipt)
{
    if (receipt->total <= express->offset || receipt->each != receipt->total)
        return 0;
    PyObject *flow = flow_of(express, receipt, lane->from_wire.buf);
    if (!flow)
        return -1;
    PyObject *hop = PyDict_GetItemWithError(express->admitted, flow);
    Py_DECREF(flow);
    if (!hop)
        return PyErr_Occurred() ? -1 : 0;
    byte *packet = (byte *)lane->from_wire.buf + express->offset;
    size_t length = (size_t)(receipt->total - express->offset);
    struct vnet vnet = single(packet, length, (size_t)express->mtu);
    struct iovec parts[] = {{&vnet, sizeof vnet}, {packet, length}};
    if (writev(lane->device, parts, 2) < 0)
        return 0;
    Py_INCREF(hop);
    int failed = count_one(hop, RECEIVED, length);
    Py_DECREF(hop);
    return failed ? -1 : 1;
}

/* Handing over */

static int hand_over(PyObject *ready, int fd, PyObject *first)
{
    PyObject *item = first ? Py_BuildValue("(iN)", fd, first) : NULL;
    int failed = !item || PyList_Append(ready, item);
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static PyObject *endpoint(const struct receipt *receipt)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (is_ipv4(receipt)) {
        const struct sockaddr_in *from = (const struct sockaddr_in *)&receipt->from;
        inet_ntop(AF_INET, &from->sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, ntohs(from->sin_port));
    }
    inet_ntop(AF_INET6, &receipt->from.sin6_addr, text, sizeof text);
    return Py_BuildValue("(siII)", text, ntohs(receipt->from.sin6_port), ntohl(receipt->from.sin6_flowinfo),
                         receipt->from.sin6_scope_id);
}

static int serve_device(const struct express *express, const struct lane *lane, PyObject *ready)
{
    for (int alone = 1;; alone = 0) { /* What waits right behind goes with others, in few sends. */
        ssize_t size = read(lane->device, lane->from_device.buf, sizeof(struct vnet) + MAX_PACKET);
        if (size < 0 && errno == EAGAIN)
            return 0;
        int done = alone && size > 0 ? send_alone(express, lane, (size_t)size) : 0;
        if (done < 0)
            return -1;
        if (!done)
            return hand_over(ready, lane->device, PyLong_FromSsize_t(size > 0 ? size : 0));
    }
}

static int serve_wire(const struct express *express, const struct lane *lane, PyObject *ready)
{
    struct receipt receipt;
    if (receive(lane, &receipt) >= 0) {
        int done = deliver_alone(express, lane, &receipt);
        if (done < 0)
            return -1;
        if (!done || receive(lane, &receipt) >= 0)
            return hand_over(ready, lane->wire,
                             Py_BuildValue("(niN)", (Py_ssize_t)receipt.total, receipt.each, endpoint(&receipt)));
    }
    if (errno == EAGAIN)
        return 0;
    Py_INCREF(Py_None);
    return hand_over(ready, lane->wire, Py_None);
}

static int serve(const struct express *express, int fd, PyObject *ready)
{
    for (Py_ssize_t i = 0; i < express->count; i++) {
        if (fd == express->lanes[i].device)
            return serve_device(express, &express->lanes[i], ready);
        if (fd == express->lanes[i].wire)
            return serve_wire(express, &express->lanes[i], ready);
    }
    Py_INCREF(Py_None);
    return hand_over(ready, fd, Py_None);
}

static PyObject *wait_all(const struct express *express)
{
    struct epoll_event events[MOST_EVENTS];
    PyObject *ready = PyList_New(0);
    while (ready && !PyList_Size(ready)) {
        int count, failed = 0;
        Py_BEGIN_ALLOW_THREADS;
        count = epoll_wait(express->epoll, events, MOST_EVENTS, -1);
        Py_END_ALLOW_THREADS;
        if (count < 0 && (errno != EINTR || PyErr_CheckSignals())) {
            failed = 1;
            if (!PyErr_Occurred())
                PyErr_SetFromErrno(PyExc_OSError);
        }
        for (int i = 0; !failed && i < count; i++)
            failed = serve(express, events[i].data.fd, ready);
        if (failed)
            Py_CLEAR(ready);
    }
    return ready;
}

static int take_lane(PyObject *described, struct lane *lane)
{
    return PyArg_ParseTuple(described, "iiiw*w*", &lane->device, &lane->wire, &lane->sender, &lane->from_device,
                            &lane->from_wire);
}

PyObject *express_wait(PyObject *self, PyObject *args)
{
    struct express express = {.count = 0};
    PyObject *lanes, *ready = NULL;
    Py_ssize_t wanted;
    (void)self;
    if (!PyArg_ParseTuple(args, "iO!O!O!nn", &express.epoll, &PyTuple_Type, &lanes, &PyDict_Type, &express.known,
                          &PyDict_Type, &express.admitted, &express.offset, &express.mtu))
        return NULL;
    wanted = PyTuple_Size(lanes);
    if (wanted > MOST_LANES || express.offset < 0 || express.mtu < 0) {
        PyErr_SetString(PyExc_ValueError, "expected at most 16 lanes, and sizes that are positive");
        return NULL;
    }
    while (express.count < wanted && take_lane(PyTuple_GetItem(lanes, express.count), &express.lanes[express.count]))
        express.count++;
    if (express.count == wanted)
        ready = wait_all(&express);
    while (express.count--) {
        PyBuffer_Release(&express.lanes[express.count].from_device);
        PyBuffer_Release(&express.lanes[express.count].from_wire);
    }
    return ready;
}
