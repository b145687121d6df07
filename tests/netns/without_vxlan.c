/* Preloaded, it makes a kernel with VXLAN devices one without: a netlink message that asks for kind "vxlan" leaves as
 * one that asks for "vxlam", and the kernel answers what it answers to a kind that it does not have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

static void misspell(const void *message, size_t size)
{
    char *kind = memmem(message, size, "vxlan", 6);

    if (kind)
        kind[4] = 'm';
}

ssize_t send(int fd, const void *message, size_t size, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");

    misspell(message, size);
    return real(fd, message, size, flags);
}

ssize_t sendto(int fd, const void *message, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");

    misspell(message, size);
    return real(fd, message, size, flags, to, length);
}
