/* Makes system calls on chosen files fail or wait: a library that is loaded before libc (LD_PRELOAD).

   The environment variable FS3_TEST_FAULTS names a file of 4096 bytes, mapped by every process. Its lines say what happens,
   up to the first zero byte; no line, no fault:

       OPERATION PATH ACTION

   OPERATION: read, write (fallocate too) or sync. PATH: a part of the path of the file. ACTION: eio, enospc, or a number of
   milliseconds to wait. What is read or written through a mapping of a file is not seen. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SIZE 4096

static const volatile char *control;

__attribute__((constructor)) static void open_control(void) {
    const char *path = getenv("FS3_TEST_FAULTS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        control = at;
}

/* 0, or -1 with errno set when the operation is to fail. */
static int fault(const char *operation, int fd) {
    if (!control || !control[0])
        return 0;
    int saved = errno;
    char link[40], path[1024], text[SIZE + 1], *rest = text;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0 || path[0] != '/')
        return 0;
    path[length] = 0;
    memcpy(text, (const void *)control, SIZE);
    text[SIZE] = 0;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char which[16], part[512], action[16];
        if (sscanf(line, "%15s %511s %15s", which, part, action) != 3 || strcmp(which, operation) || !strstr(path, part))
            continue;
        if (!strcmp(action, "eio") || !strcmp(action, "enospc")) {
            errno = action[1] == 'i' ? EIO : ENOSPC;
            return -1;
        }
        long ms = atol(action);
        struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
        nanosleep(&pause, NULL);
        errno = saved;
    }
    return 0;
}

#define WRAP(result, name, operation, fd, parameters, arguments)                                                              \
    result name parameters {                                                                                                   \
        static result(*real) parameters;                                                                                       \
        if (!real)                                                                                                             \
            real = (result(*) parameters)dlsym(RTLD_NEXT, #name);                                                              \
        return fault(operation, fd) ? -1 : real arguments;                                                                     \
    }

WRAP(ssize_t, read, "read", fd, (int fd, void *to, size_t n), (fd, to, n))
WRAP(ssize_t, pread, "read", fd, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
WRAP(ssize_t, pread64, "read", fd, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
WRAP(ssize_t, readv, "read", fd, (int fd, const struct iovec *to, int n), (fd, to, n))
WRAP(ssize_t, preadv, "read", fd, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at))
WRAP(ssize_t, preadv64, "read", fd, (int fd, const struct iovec *to, int n, off64_t at), (fd, to, n, at))
WRAP(ssize_t, preadv2, "read", fd, (int fd, const struct iovec *to, int n, off_t at, int flags), (fd, to, n, at, flags))
WRAP(ssize_t, preadv64v2, "read", fd, (int fd, const struct iovec *to, int n, off64_t at, int flags), (fd, to, n, at, flags))
WRAP(ssize_t, sendfile, "read", fd, (int to, int fd, off_t *at, size_t n), (to, fd, at, n))
WRAP(ssize_t, sendfile64, "read", fd, (int to, int fd, off64_t *at, size_t n), (to, fd, at, n))
WRAP(ssize_t, splice, "read", fd, (int fd, off64_t *from, int to, off64_t *at, size_t n, unsigned f), (fd, from, to, at, n, f))
WRAP(ssize_t, write, "write", fd, (int fd, const void *from, size_t n), (fd, from, n))
WRAP(ssize_t, pwrite, "write", fd, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
WRAP(ssize_t, pwrite64, "write", fd, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
WRAP(ssize_t, writev, "write", fd, (int fd, const struct iovec *from, int n), (fd, from, n))
WRAP(ssize_t, pwritev, "write", fd, (int fd, const struct iovec *from, int n, off_t at), (fd, from, n, at))
WRAP(ssize_t, pwritev64, "write", fd, (int fd, const struct iovec *from, int n, off64_t at), (fd, from, n, at))
WRAP(ssize_t, pwritev2, "write", fd, (int fd, const struct iovec *from, int n, off_t at, int flags), (fd, from, n, at, flags))
WRAP(ssize_t, pwritev64v2, "write", fd, (int fd, const struct iovec *from, int n, off64_t at, int f), (fd, from, n, at, f))
WRAP(int, fallocate, "write", fd, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
WRAP(int, fallocate64, "write", fd, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n))
WRAP(int, fsync, "sync", fd, (int fd), (fd))
WRAP(int, fdatasync, "sync", fd, (int fd), (fd))
WRAP(int, sync_file_range, "sync", fd, (int fd, off64_t at, off64_t n, unsigned flags), (fd, at, n, flags))

/* The one that returns its error. */
int posix_fallocate(int fd, off_t at, off_t n) {
    static int (*real)(int, off_t, off_t);
    if (!real)
        real = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, "posix_fallocate");
    return fault("write", fd) ? errno : real(fd, at, n);
}
