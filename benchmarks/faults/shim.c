/* A preloaded library that records, kills or fails the calls by which a process changes files below a folder.

   cc -shared -fPIC -O1 -o shim.so shim.c -ldl;  LD_PRELOAD=./shim.so …;  fault_arm(…) switches it on in a process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OFF, LOG, KILL, TEAR, FAIL_ONCE, FAIL_ON, FAIL_SYNC, PAUSE };

static int mode = OFF, error = 0, log_fd = -1;
static long at = 0, count = 0;
static char root[4096], pause_file[4096];

void fault_arm(const char *folder, int what, long n, int e, const char *log) {
    strncpy(root, folder, sizeof root - 1);
    strncpy(pause_file, log, sizeof pause_file - 1);
    at = n; error = e; count = 0; mode = what;
    if (what != PAUSE && log[0]) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
}

long fault_count(void) { return count; }

static int below(const char *path) { return mode != OFF && strncmp(path, root, strlen(root)) == 0; }

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, 4095);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static uint64_t inode(int fd) { struct stat s; return fstat(fd, &s) ? 0 : s.st_ino; }

static void record(char op, uint64_t ino, uint64_t offset, uint64_t length, const void *data) {
    struct __attribute__((packed)) { char op; uint64_t ino, offset, length; } head = {op, ino, offset, length};
    if (mode != LOG) return;
    syscall(SYS_write, log_fd, &head, sizeof head);
    for (uint64_t done = 0; data && done < length;) {
        long n = syscall(SYS_write, log_fd, (const char *)data + done, length - done);
        if (n <= 0) break;
        done += n;
    }
}

void fault_ack(const char *text) {
    if (mode == LOG) record('A', 0, 0, strlen(text), text);
    else if (log_fd >= 0) { syscall(SYS_write, log_fd, text, strlen(text)); syscall(SYS_write, log_fd, "\n", 1); }
}

/* 1 if the call is to fail; a kill does not return. */
static int strike(int is_sync) {
    if (mode == LOG || mode == OFF) return 0;
    count++;
    if (mode == KILL && count == at) raise(SIGKILL);
    if (mode == PAUSE && count == at) {
        syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, pause_file, O_WRONLY | O_CREAT, 0666));
        while (access(pause_file, F_OK) == 0) usleep(1000);
    }
    int fails = (mode == FAIL_ONCE && count == at) || (mode == FAIL_ON && count >= at) || (mode == FAIL_SYNC && is_sync && count >= at);
    if (fails) errno = error;
    return fails;
}

static int tears(void) { return mode == TEAR && count == at; }

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t put(ssize_t (*real)(int, const void *, size_t, off_t), int fd, const void *data, size_t n, off_t offset) {
    char path[4096];
    if (!path_of(fd, path)) return real(fd, data, n, offset);
    if (strike(0)) return -1;
    if (tears()) { real(fd, data, n / 2, offset); raise(SIGKILL); }
    ssize_t done = real(fd, data, n, offset);
    if (done > 0) record('w', inode(fd), offset, done, data);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return put(real, fd, data, n, offset);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return put(real, fd, data, n, offset);
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char path[4096];
    if (!path_of(fd, path)) return real(fd, data, n);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    if (strike(0)) return -1;
    if (tears()) { real(fd, data, n / 2); raise(SIGKILL); }
    ssize_t done = real(fd, data, n);
    if (done > 0) record('w', inode(fd), offset, done, data);
    return done;
}

#define TRUNCATE(name) int name(int fd, off_t size) { \
    REAL(int, #name, int, off_t); char path[4096]; \
    if (!path_of(fd, path)) return real(fd, size); \
    if (strike(0)) return -1; \
    int r = real(fd, size); \
    if (!r) record('t', inode(fd), size, 0, NULL); \
    return r; }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define ALLOCATE(name) int name(int fd, off_t offset, off_t size) { \
    REAL(int, #name, int, off_t, off_t); char path[4096]; \
    if (!path_of(fd, path)) return real(fd, offset, size); \
    if (strike(0)) return errno; \
    int r = real(fd, offset, size); \
    if (!r) record('a', inode(fd), offset + size, 0, NULL); \
    return r; }
ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)

#define SYNC(name) int name(int fd) { \
    REAL(int, #name, int); char path[4096]; \
    if (!path_of(fd, path)) return real(fd); \
    if (strike(1)) return -1; \
    int r = real(fd); struct stat s; \
    if (!r && !fstat(fd, &s)) record(S_ISDIR(s.st_mode) ? 'd' : 's', s.st_ino, 0, strlen(path), path); \
    return r; }
SYNC(fsync)
SYNC(fdatasync)

#define TWO(name, op) int name(const char *from, const char *to) { \
    REAL(int, #name, const char *, const char *); \
    if (!below(to)) return real(from, to); \
    if (strike(0)) return -1; \
    int r = real(from, to); char both[8200]; \
    if (!r) { int n = snprintf(both, sizeof both, "%s\n%s", from, to); record(op, 0, 0, n, both); } \
    return r; }
TWO(rename, 'r')
TWO(link, 'l')

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (!below(path)) return real(path);
    if (strike(0) && error != ENOSPC) return -1;
    int r = real(path);
    if (!r) record('u', 0, 0, strlen(path), path);
    return r;
}

static int opened(int fd, const char *path, int flags) {
    if (fd >= 0 && below(path) && (flags & (O_CREAT | O_TRUNC))) {
        record('o', inode(fd), 0, strlen(path), path);
        if (flags & O_TRUNC) record('t', inode(fd), 0, 0, NULL);
    }
    return fd;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); int rights = va_arg(more, int); va_end(more); \
    REAL(int, #name, const char *, int, ...); \
    if (below(path) && (flags & (O_CREAT | O_TRUNC)) && strike(0)) return -1; \
    return opened(real(path, flags, rights), path, flags); }
OPEN(open)
OPEN(open64)
