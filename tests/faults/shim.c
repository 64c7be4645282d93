/* Counts the calls that change files below a path, and at the Nth kills the process or fails.
 *
 * Loaded with LD_PRELOAD; it does nothing until fault_arm was called. Python, SQLite, torch's writer and
 * safetensors' all write through these functions of libc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static volatile long counted, wanted;
static volatile int fails, stays;

/* fails: 0 only counts, -1 kills the process, otherwise the error number; stays: so do all calls after */
void fault_arm(const char *path, long number, int error, int for_good) {
    strncpy(below, path, sizeof below - 1);
    counted = 0, wanted = number, fails = error, stays = for_good;
}
long fault_count(void) { return counted; }

static int hit(const char *path) {
    if (!below[0] || !path || !strstr(path, below)) return 0;
    long now = __sync_add_and_fetch(&counted, 1);
    return wanted && (now == wanted || (stays && now > wanted));
}
static int hit_fd(int fd) {
    char link[64], path[4096];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return hit(path);
}
static int fault(void) {
    if (fails < 0) kill(getpid(), SIGKILL);
    errno = fails;
    return -1;
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (hit_fd(fd) && fails) {
        if (fails < 0) real(fd, data, size / 2); /* torn */
        return fault();
    }
    return real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return hit_fd(fd) && fails ? fault() : real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    return hit_fd(fd) && fails ? fault() : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    if (hit_fd(fd) && fails) {
        if (fails < 0) real(fd, data, size / 2, at);
        return fault();
    }
    return real(fd, data, size, at);
}
int fsync(int fd) { REAL(fsync); return hit_fd(fd) && fails ? fault() : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return hit_fd(fd) && fails ? fault() : real(fd); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return hit_fd(fd) && fails ? fault() : real(fd, size); }
int rename(const char *from, const char *to) {
    REAL(rename);
    return hit(to) && fails ? fault() : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return hit(path) && fails ? fault() : real(path, mode);
}
/* What frees space does not fail on a full disk: these only count, or kill. */
int unlink(const char *path) { REAL(unlink); if (fails <= 0 && hit(path) && fails) fault(); return real(path); }
int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat);
    if (fails <= 0 && hit_fd(fd) && fails) fault();
    return real(fd, path, flags);
}
#define OPENING (O_CREAT | O_TRUNC)
#define MODE(last) va_list more; va_start(more, last); mode_t mode = va_arg(more, mode_t); va_end(more)
int open(const char *path, int flags, ...) {
    MODE(flags); REAL(open);
    return flags & OPENING && hit(path) && fails ? fault() : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags); REAL(open64);
    return flags & OPENING && hit(path) && fails ? fault() : real(path, flags, mode);
}
int openat64(int fd, const char *path, int flags, ...) {
    MODE(flags); REAL(openat64);
    return flags & OPENING && hit(path) && fails ? fault() : real(fd, path, flags, mode);
}
