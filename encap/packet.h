/* What the C half of the userspace data plane knows of packets: checksums, where things are, virtio headers. */

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

#endif
