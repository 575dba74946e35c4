/* Preloaded into a process, counts the bytes that it copies, and those that the kernel copies for it: what programs say of their
 * copies can be checked by that. Small ones are not counted. Built and read by tests/rdma/counted.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { COPIED, RECEIVED, SENT, FILE_READ, FILE_WRITTEN, FIELDS };
#define LEAST 1024

unsigned long fs3_counted[FIELDS];

static void count(int field, ssize_t bytes) {
    if (bytes >= LEAST) __atomic_fetch_add(&fs3_counted[field], bytes, __ATOMIC_RELAXED);
}

static void forward(void *to, const void *from, size_t size) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static void backward(char *to, const char *from, size_t size) {
    to += size - 1, from += size - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

void *memcpy(void *to, const void *from, size_t size) {
    count(COPIED, size);
    forward(to, from, size);
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    count(COPIED, size);
    if ((char *)to - (char *)from >= 0 && (size_t)((char *)to - (char *)from) < size) backward(to, from, size);
    else forward(to, from, size);
    return to;
}

void *__memcpy_chk(void *to, const void *from, size_t size, size_t room) { return memcpy(to, from, size); }
void *__memmove_chk(void *to, const void *from, size_t size, size_t room) { return memmove(to, from, size); }

#define COUNTED(type, name, field, parameters, arguments)               \
    type name parameters {                                              \
        static type(*real) parameters;                                  \
        if (!real) real = dlsym(RTLD_NEXT, #name);                      \
        type done = real arguments;                                     \
        count(field, done);                                             \
        return done;                                                    \
    }

COUNTED(ssize_t, recv, RECEIVED, (int fd, void *into, size_t size, int flags), (fd, into, size, flags))
COUNTED(ssize_t, recvmsg, RECEIVED, (int fd, struct msghdr *message, int flags), (fd, message, flags))
COUNTED(ssize_t, send, SENT, (int fd, const void *from, size_t size, int flags), (fd, from, size, flags))
COUNTED(ssize_t, sendmsg, SENT, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
COUNTED(ssize_t, pread64, FILE_READ, (int fd, void *into, size_t size, off_t at), (fd, into, size, at))
COUNTED(ssize_t, preadv64, FILE_READ, (int fd, const struct iovec *into, int n, off_t at), (fd, into, n, at))
COUNTED(ssize_t, preadv64v2, FILE_READ, (int fd, const struct iovec *into, int n, off_t at, int flags), (fd, into, n, at, flags))
COUNTED(ssize_t, pwrite64, FILE_WRITTEN, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
COUNTED(ssize_t, pwritev64, FILE_WRITTEN, (int fd, const struct iovec *from, int n, off_t at), (fd, from, n, at))
COUNTED(ssize_t, pwritev64v2, FILE_WRITTEN, (int fd, const struct iovec *from, int n, off_t at, int flags), (fd, from, n, at, flags))
