/* What the C half of the userspace data plane knows of packets: checksums, where things are, cutting and merging. */

#ifndef FLANNELD_PY_PACKET_H
#define FLANNELD_PY_PACKET_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t byte;

/* linux/virtio_net.h: struct virtio_net_hdr, in the machine's byte order. */
struct vnet {
    byte flags, type;
    uint16_t header, size, start, offset;
};

enum { NEEDS_CSUM = 1 };
enum { GSO_NONE = 0, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5, GSO_ECN = 0x80 };
enum { TCP = 6, UDP = 17 };
enum { FIN = 0x01, PSH = 0x08, ACK = 0x10, CWR = 0x80 };
enum { MAX_PACKET = 65535, LANES = 16 };
enum { SMALLEST = 1280 }; /* segments of an uncut super-packet, see uncut.py */

static inline unsigned get16(const byte *at) { return (unsigned)at[0] << 8 | at[1]; }

static inline uint32_t get32(const byte *at) { return (uint32_t)get16(at) << 16 | get16(at + 2); }

static inline void put16(byte *at, unsigned value)
{
    at[0] = (byte)(value >> 8);
    at[1] = (byte)value;
}

static inline void put32(byte *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value & 0xFFFF);
}

/* One's-complement sums (RFC 1071) in the machine's byte order: what is stored as it is in memory comes out right. */

/* The same loop for wider registers; the processor's are found when the module is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && __GNUC__ >= 9 && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t add(uint64_t sum, const byte *at, size_t length)
{
    uint64_t lanes[LANES] = {sum};
    uint32_t words[LANES];
    uint16_t word;
    for (; length >= sizeof words; at += sizeof words, length -= sizeof words) {
        memcpy(words, at, sizeof words);
        for (int i = 0; i < LANES; i++)
            lanes[i] += words[i];
    }
    sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += lanes[i];
    for (; length >= 2; at += 2, length -= 2) {
        memcpy(&word, at, 2);
        sum += word;
    }
    if (length) {
        word = 0;
        memcpy(&word, at, 1);
        sum += word;
    }
    return sum;
}

static inline uint16_t fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)sum;
}

/* Store what makes the sum of everything 0xffff; 0xffff instead of 0, where 0 would mean "none". */
static inline void finish(byte *field, uint64_t sum, int never_zero)
{
    uint16_t value = (uint16_t)~fold(sum);
    if (!value && never_zero)
        value = 0xFFFF;
    memcpy(field, &value, 2);
}

/* Where things are in an IP packet: transport header and payload. */
struct layout {
    int version, protocol;
    size_t transport, header;
};

static inline uint64_t pseudo(const byte *packet, const struct layout *is, size_t length)
{
    byte rest[4] = {0, (byte)is->protocol, 0, 0};
    put16(rest + 2, (unsigned)length);
    return add(add(0, rest, 4), packet + (is->version == 4 ? 12 : 8), is->version == 4 ? 8 : 32);
}

static inline void put_lengths(byte *packet, const struct layout *is, size_t length)
{
    if (is->version == 4) {
        put16(packet + 2, (unsigned)length);
        memset(packet + 10, 0, 2);
        finish(packet + 10, add(0, packet, is->transport), 0);
    } else {
        put16(packet + 4, (unsigned)(length - 40));
    }
    if (is->protocol == UDP)
        put16(packet + is->transport + 4, (unsigned)(length - is->transport));
}

/* Return where the destination is in a packet whose IP header is sound and whose TTL is not used up, else NULL. */
static inline const byte *destination(const byte *packet, size_t length, size_t *size)
{
    int version = length < 20 ? 0 : packet[0] >> 4;
    size_t header = (size_t)(packet[0] & 15) * 4;
    *size = version == 4 ? 4 : 16;
    if (version == 4)
        return header >= 20 && header <= length && get16(packet + 2) == length && packet[8] ? packet + 16 : NULL;
    return version == 6 && length >= 40 && get16(packet + 4) + 40u == length && packet[7] ? packet + 24 : NULL;
}

/* Tell whether this is a whole TCP or UDP packet without IP options and extension headers, and where things are. */
static inline int read_layout(const byte *packet, size_t length, struct layout *is)
{
    size_t whole;
    if (length < 28)
        return 0;
    is->version = packet[0] >> 4;
    if (packet[0] == 0x45) {
        is->protocol = packet[9];
        is->transport = 20;
        whole = get16(packet + 6) & 0x3FFF ? 0 : get16(packet + 2);
    } else if (is->version == 6) {
        is->protocol = packet[6];
        is->transport = 40;
        whole = 40 + (size_t)get16(packet + 4);
    } else {
        return 0;
    }
    if (whole != length || length < is->transport + (is->protocol == TCP ? 20 : 8))
        return 0;
    const byte *transport = packet + is->transport;
    if (is->protocol == TCP) {
        is->header = is->transport + (size_t)(transport[12] >> 4) * 4;
        return is->header >= is->transport + 20 && is->header <= length;
    }
    is->header = is->transport + 8;
    return is->protocol == UDP && is->transport + get16(transport + 4) == length;
}

static inline int right_header(const byte *packet, const struct layout *is)
{
    return is->version == 6 || fold(add(0, packet, is->transport)) == 0xFFFF;
}

static inline int right_payload(const byte *packet, size_t length, const struct layout *is)
{
    length -= is->transport;
    return fold(add(pseudo(packet, is, length), packet + is->transport, length)) == 0xFFFF;
}

/* Make the packet at `first` a super-packet of `length` bytes; return its virtio header. */
static inline struct vnet complete(byte *first, const struct layout *is, size_t length, size_t payload)
{
    byte *field = first + is->transport + (is->protocol == UDP ? 6 : 16);
    uint16_t sum;
    put_lengths(first, is, length);
    sum = fold(pseudo(first, is, length - is->transport));
    if (sum == 0xFFFF)
        sum = 0; /* as Python says it; to a one's-complement sum they are the same */
    memcpy(field, &sum, 2);
    return (struct vnet){
        .flags = NEEDS_CSUM,
        .type = is->protocol == UDP ? GSO_UDP_L4 : is->version == 4 ? GSO_TCPV4 : GSO_TCPV6,
        .header = (uint16_t)is->header,
        .size = (uint16_t)payload,
        .start = (uint16_t)is->transport,
        .offset = is->protocol == UDP ? 6 : 16,
    };
}

/* Return the virtio header of one packet as it came; what a namespace's kernel left unfinished is declared so. */
static inline struct vnet single(byte *packet, size_t length, size_t mtu)
{
    struct layout is;
    struct vnet vnet = {0};
    if (!read_layout(packet, length, &is))
        return vnet;
    uint16_t check, sum = fold(pseudo(packet, &is, length - is.transport));
    size_t field = is.protocol == UDP ? 6 : 16;
    memcpy(&check, packet + is.transport + field, 2);
    int unfinished = check && check == sum;
    if (is.protocol == TCP && length > mtu && mtu > is.header) {
        if ((unfinished || right_payload(packet, length, &is)) && right_header(packet, &is))
            vnet = complete(packet, &is, length, (mtu < SMALLEST ? mtu : SMALLEST) - is.header);
    } else if (unfinished) {
        vnet.flags = NEEDS_CSUM;
        vnet.header = (uint16_t)is.header;
        vnet.start = (uint16_t)is.transport;
        vnet.offset = (uint16_t)field;
    }
    return vnet;
}

/* Tell whether virtio header and packet fit together, and where things are. The kernel made both. */
static inline int read_super(const byte *packet, size_t length, const struct vnet *vnet, int type, struct layout *is)
{
    is->version = packet[0] >> 4;
    is->protocol = type == GSO_UDP_L4 ? UDP : TCP;
    is->transport = vnet->start;
    if (!vnet->size || is->transport < 20 || is->transport + (is->protocol == UDP ? 8 : 20) > length)
        return 0;
    if (type != GSO_UDP_L4 && is->version != (type == GSO_TCPV4 ? 4 : type == GSO_TCPV6 ? 6 : 0))
        return 0;
    is->header = is->transport + (is->protocol == UDP ? 8 : (size_t)(packet[is->transport + 12] >> 4) * 4);
    if (is->header < is->transport + (is->protocol == UDP ? 8 : 20) || is->header >= length)
        return 0;
    if (is->version == 4)
        return is->transport == (size_t)(packet[0] & 15) * 4;
    return is->version == 6 && is->transport >= 40;
}

/* Make one segment in its datagram: `done` bytes of payload went before, `part` are in it. */
static inline void cut(byte *inner, const byte *packet, const struct layout *is, size_t number, size_t done, size_t part,
                int last)
{
    byte *transport = inner + is->transport;
    byte *field = transport + (is->protocol == UDP ? 6 : 16);
    size_t length = is->header + part;
    memcpy(inner, packet, is->header);
    memcpy(inner + is->header, packet + is->header + done, part);
    if (is->version == 4)
        put16(inner + 4, get16(packet + 4) + (unsigned)number);
    put_lengths(inner, is, length);
    if (is->protocol == TCP) {
        put32(transport + 4, get32(transport + 4) + (uint32_t)done);
        if (number)
            transport[13] &= (byte)~CWR;
        if (!last)
            transport[13] &= (byte) ~(FIN | PSH);
    }
    memset(field, 0, 2);
    length -= is->transport;
    finish(field, add(pseudo(inner, is, length), transport, length), is->protocol == UDP);
}

/* Tell whether this is a packet with payload, right checksums, and nothing that a merged one cannot say. */
static inline int mergeable(const byte *packet, size_t length, int udp, struct layout *is)
{
    if (!read_layout(packet, length, is) || is->header >= length)
        return 0;
    const byte *transport = packet + is->transport;
    if (is->protocol == UDP ? !udp || !get16(transport + 6) : (transport[13] & ~PSH) != ACK || transport[12] & 15)
        return 0;
    return right_header(packet, is) && right_payload(packet, length, is);
}

/* Tell whether two mergeable packets of one layout are equal in what a merged one says once for both.
   Left out: lengths, checksums, TCP's sequence number and PSH, and IPv4's identification (RFC 6864). */
static inline int alike(const byte *a, const byte *b, const struct layout *is)
{
    size_t at = is->transport;
    if (is->version == 4 ? memcmp(a, b, 2) || memcmp(a + 6, b + 6, 4) || memcmp(a + 12, b + 12, 8)
                         : memcmp(a, b, 4) || memcmp(a + 6, b + 6, 34))
        return 0;
    if (memcmp(a + at, b + at, 4))
        return 0;
    if (is->protocol == UDP)
        return 1;
    return !memcmp(a + at + 8, b + at + 8, 5) && !memcmp(a + at + 14, b + at + 14, 2) &&
           !memcmp(a + at + 18, b + at + 18, is->header - at - 18);
}

/* Merge the run of datagrams that begins at `at`, in place; return where it ends, `at` if there is none. */
static inline size_t merge_run(byte *buffer, size_t end, size_t at, size_t size, size_t offset, int udp, size_t *length,
                        struct vnet *vnet)
{
    struct layout is, other;
    byte *first = buffer + at + offset;
    if (size <= offset || end - at <= size || !mergeable(first, size - offset, udp, &is))
        return at;
    size_t payload = size - offset - is.header, next = at + size;
    uint32_t sequence = get32(first + is.transport + 4);
    *length = size - offset;
    while (next < end) {
        byte *packet = buffer + next + offset;
        size_t have = end - next < size ? end - next : size;
        if (have <= offset || *length + (have - offset) - is.header > MAX_PACKET)
            break;
        if (memcmp(buffer + at, buffer + next, offset) || !mergeable(packet, have - offset, udp, &other))
            break;
        if (other.version != is.version || other.protocol != is.protocol || other.header != is.header)
            break;
        if (is.protocol == TCP && get32(packet + is.transport + 4) != sequence + (uint32_t)(*length - is.header))
            break;
        if (!alike(first, packet, &is))
            break;
        if (is.protocol == TCP)
            first[is.transport + 13] |= packet[is.transport + 13] & PSH;
        memmove(first + *length, packet + is.header, have - offset - is.header);
        *length += have - offset - is.header;
        next += have;
    }
    if (next == at + size)
        return at;
    *vnet = complete(first, &is, *length, payload);
    return next;
}

#endif
