/* What costs most per byte in the userspace data plane, in C: read, cut, merge. What costs most per packet: encap/datapath/fastpath.c.

   Optional: encap/datapath/gather.py, segment.py and coalesce.py do the same in Python, and tests hold the two against each other.
   Not here: which packet may pass (encap/datapath/forward.py), sockets, devices. Nothing is kept between two calls, and nothing is
   read or written outside the buffers that were handed in. The stable ABI of Python 3.11 is all that it needs. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <errno.h>
#include <unistd.h>

#include "packet.h"

/* Append an item that is ours alone, or NULL, to a list; return the list, NULL if that failed. */
static PyObject *append(PyObject *list, PyObject *item)
{
    if (!item || PyList_Append(list, item)) {
        Py_DECREF(list);
        list = NULL;
    }
    Py_XDECREF(item);
    return list;
}

/* Cutting */

static PyObject *nothing(void) { return Py_BuildValue("(y#n)", "", (Py_ssize_t)0, (Py_ssize_t)0); }

static PyObject *segment_super(const struct vnet *vnet, const byte *from, size_t length, const Py_buffer *prefix)
{
    struct layout is;
    if (!length || !read_super(from, length, vnet, vnet->type & ~GSO_ECN, &is))
        return nothing();
    struct cuts cuts = plan_cuts(vnet, &is, length, (size_t)prefix->len);
    PyObject *datagrams = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)cuts.total);
    if (!datagrams)
        return NULL;
    cut_all((byte *)PyBytes_AsString(datagrams), prefix->buf, (size_t)prefix->len, from, &is, &cuts);
    return Py_BuildValue("(Nn)", datagrams, (Py_ssize_t)cuts.size);
}

static PyObject *segment_plain(const struct vnet *vnet, const byte *from, size_t count, size_t each,
                               const Py_buffer *prefix)
{
    size_t at = (size_t)vnet->start + vnet->offset, length = each - sizeof *vnet, size = prefix->len + length;
    int unfinished = vnet->flags & NEEDS_CSUM;
    if (unfinished && at + 2 > length)
        return nothing();
    PyObject *datagrams = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * size));
    if (!datagrams)
        return NULL;
    byte *to = (byte *)PyBytes_AsString(datagrams);
    for (; count; count--, from += each, to += size) {
        byte *packet = to + prefix->len;
        memcpy(to, prefix->buf, prefix->len);
        memcpy(packet, from, length);
        if (unfinished)
            finish(packet + at, add(0, packet + vnet->start, length - vnet->start), 1);
    }
    return Py_BuildValue("(Nn)", datagrams, (Py_ssize_t)size);
}

static PyObject *segment(PyObject *self, PyObject *args)
{
    Py_buffer train, prefix;
    Py_ssize_t each;
    struct vnet vnet;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*ny*", &train, &each, &prefix))
        return NULL;
    if (each < (Py_ssize_t)sizeof vnet || train.len < each || train.len % each) {
        PyErr_SetString(PyExc_ValueError, "a train is packets of one size with a virtio header each");
    } else {
        const byte *from = (const byte *)train.buf + sizeof vnet;
        memcpy(&vnet, train.buf, sizeof vnet);
        if ((vnet.type & ~GSO_ECN) == GSO_NONE)
            result = segment_plain(&vnet, from, (size_t)(train.len / each), (size_t)each, &prefix);
        else
            result = segment_super(&vnet, from, (size_t)each - sizeof vnet, &prefix);
    }
    PyBuffer_Release(&train);
    PyBuffer_Release(&prefix);
    return result;
}

/* Gathering */

/* Tell whether two packets of one size from the device have one fate: sound ones to one address, nothing to be cut. */
static int same_fate(const byte *a, const byte *b, size_t size)
{
    const size_t lead = sizeof(struct vnet);
    size_t width, other;
    if (size <= lead || memcmp(a, b, lead) || a[1] != GSO_NONE || a[lead] != b[lead])
        return 0;
    const byte *to = destination(a + lead, size - lead, &width), *too = destination(b + lead, size - lead, &other);
    return to && too && !memcmp(to, too, width) && marking(a + lead, size - lead) == marking(b + lead, size - lead);
}

static size_t segment_size(const byte *at, size_t size)
{
    struct vnet vnet;
    if (size <= sizeof vnet)
        return 0;
    memcpy(&vnet, at, sizeof vnet);
    return vnet.type == GSO_NONE ? 0 : vnet.size;
}

static PyObject *train(const byte *buffer, size_t start, size_t stop, size_t each)
{
    const size_t lead = sizeof(struct vnet);
    size_t width = 0;
    const byte *to = each > lead ? destination(buffer + start + lead, each - lead, &width) : NULL;
    return Py_BuildValue("(nnniy#)", (Py_ssize_t)start, (Py_ssize_t)stop, (Py_ssize_t)each,
                         (int)segment_size(buffer + start, each), to ? (const char *)to : "",
                         (Py_ssize_t)(to ? width : 0));
}

static PyObject *gather_all(int fd, byte *buffer, size_t room, Py_ssize_t most, size_t have)
{
    PyObject *trains = PyList_New(0);
    size_t start = 0, at = 0, each = 0, charged = 0;
    while (trains && most-- > 0 && room - at >= sizeof(struct vnet) + MAX_PACKET && charged < room) {
        ssize_t size = have ? (ssize_t)have : read(fd, buffer + at, sizeof(struct vnet) + MAX_PACKET);
        have = 0;
        if (size <= 0) {
            if (size == 0 || errno == EAGAIN || at)
                break;
            Py_DECREF(trains);
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (at == start || (size_t)size != each || !same_fate(buffer + start, buffer + at, each)) {
            if (at != start)
                trains = append(trains, train(buffer, start, at, each));
            start = at;
            each = (size_t)size;
        }
        charged += cost((size_t)size, segment_size(buffer + at, (size_t)size));
        at += (size_t)size;
    }
    if (trains && at != start)
        trains = append(trains, train(buffer, start, at, each));
    return trains;
}

static PyObject *gather(PyObject *self, PyObject *args)
{
    Py_buffer buffer;
    Py_ssize_t most, have;
    int fd;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "iw*nn", &fd, &buffer, &most, &have))
        return NULL;
    if (have < 0 || have > buffer.len)
        PyErr_SetString(PyExc_ValueError, "what is there already is in the buffer");
    else
        result = gather_all(fd, buffer.buf, (size_t)buffer.len, most, (size_t)have);
    PyBuffer_Release(&buffer);
    return result;
}

/* Merging */

static PyObject *coalesce_all(byte *buffer, size_t end, size_t size, size_t offset, size_t mtu, int udp)
{
    PyObject *writes = PyList_New(0);
    size_t at = 0;
    while (writes && at < end) {
        struct vnet vnet;
        size_t length, next = take_packet(buffer, end, at, size, offset, mtu, udp, &length, &vnet);
        size_t stop = length ? at + offset + length : next;
        writes = append(
            writes, Py_BuildValue("(y#nn)", &vnet, (Py_ssize_t)sizeof vnet, (Py_ssize_t)at, (Py_ssize_t)stop));
        at = next;
    }
    return writes;
}

static PyObject *coalesce(PyObject *self, PyObject *args)
{
    Py_buffer buffer;
    Py_ssize_t size, offset, mtu;
    int udp;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*nnnp", &buffer, &size, &offset, &mtu, &udp))
        return NULL;
    if (size <= 0 || offset < 0 || mtu < 0)
        PyErr_SetString(PyExc_ValueError, "sizes are positive");
    else
        result = coalesce_all(buffer.buf, (size_t)buffer.len, (size_t)size, (size_t)offset, (size_t)mtu, udp);
    PyBuffer_Release(&buffer);
    return result;
}

/* encap/datapath/fastpath.c */
PyObject *express_wait(PyObject *self, PyObject *args);
int express_prepare(void);

static PyMethodDef methods[] = {
    {"segment", segment, METH_VARARGS, "segment(train, each, prefix) -> (datagrams, size): see segment.py."},
    {"gather", gather, METH_VARARGS, "gather(fd, buffer, most, have) -> trains: see encap/datapath/gather.py."},
    {"coalesce", coalesce, METH_VARARGS, "coalesce(buffer, size, offset, mtu, udp) -> writes: see coalesce.py."},
    {"wait", express_wait, METH_VARARGS, "wait(epoll, lanes, from_device, from_wire, notes, known, admitted, offset, mtu, segmentation) -> ready: see encap/datapath/fastpath.c."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "accelerator", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_accelerator(void) { return express_prepare() ? NULL : PyModule_Create(&module); }
