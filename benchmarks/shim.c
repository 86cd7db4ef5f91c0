/* Faults below a program, for LD_PRELOAD (Linux): the n-th call of a kind fails, is cut short, or ends the process.
 *
 *     gcc -shared -fPIC -O2 -o shim.so benchmarks/shim.c -ldl
 *
 * Armed by the environment (SHIM_KIND, SHIM_PATH, SHIM_ACTION, SHIM_NTH, SHIM_TIMES) when it is loaded, or later by
 * shim_arm. Calls of the kind on paths that contain SHIM_PATH are counted from 1; those from SHIM_NTH on, SHIM_TIMES of
 * them (0: all), are acted upon. An action is an errno, or one of the negative numbers below. For the kind "memory"
 * SHIM_PATH is the least number of bytes of an allocation that counts; for the kind "every" calls of each kind but that
 * one are counted, and nothing else happens. Counts lie in memory shared with forked processes and, by SHIM_COUNTS, with
 * programs that these become, so that a parent sees how far its child came; one that shim_count_apart was called in
 * begins anew.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SHORT = -1, KILL = -2, KILL_AFTER = -3, STOP = -4 };
/* What `decide` may answer beside an errno. */
enum { GO_ON = 0, CUT = -1, DIE_AFTER = -3 };

static char kind_wanted[16], path_wanted[1024];
static size_t least_bytes;
static int action;
static long nth, times_left;
static volatile int armed, every;
static const char *const kinds[] = {"open", "read", "stat", "list", "close", "advise", "map", "write", "copy", "sync",
                                    "truncate", "rename", "link", "unlink", "lock", "mkdir"};
enum { KINDS = sizeof kinds / sizeof *kinds };
static struct { long calls, hits, of[KINDS]; } *counts, early;

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void shim_disarm(void) { armed = 0; }
long shim_calls(void) { return counts->calls; }
long shim_hits(void) { return counts->hits; }

static int number_of(const char *kind) {
    int at = 0;
    while (at < KINDS && strcmp(kinds[at], kind)) at++;
    return at;
}

/* Calls of a kind since "every" was armed; -1 for no such kind. */
long shim_calls_of(const char *kind) {
    int at = number_of(kind);
    return at < KINDS ? counts->of[at] : -1;
}

void shim_arm(const char *kind, const char *path, int what, long from, long times) {
    armed = 0;
    strncpy(kind_wanted, kind, sizeof kind_wanted - 1);
    strncpy(path_wanted, path, sizeof path_wanted - 1);
    least_bytes = strtoul(path, NULL, 10);
    action = what;
    nth = from;
    times_left = times;
    memset(counts, 0, sizeof *counts);
    every = !strcmp(kind, "every");
    armed = 1;
}

static int share_counts(int memory) {
    void *page = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    counts = page == MAP_FAILED ? (void *)&early : page;
    return page == MAP_FAILED ? -1 : 0;
}

/* 0, or -1 when there is no memory for counts that are shared. */
int shim_count_apart(void) {
    int memory = memfd_create("counts", 0);
    char text[16];
    snprintf(text, sizeof text, "%d", memory);
    if (ftruncate(memory, sizeof *counts) || setenv("SHIM_COUNTS", text, 1)) {
        counts = &early;
        return -1;
    }
    return share_counts(memory);
}

__attribute__((constructor)) static void begin(void) {
    const char *memory = getenv("SHIM_COUNTS");
    if (memory) share_counts(atoi(memory)); else shim_count_apart();
    const char *kind = getenv("SHIM_KIND"), *path = getenv("SHIM_PATH"), *what = getenv("SHIM_ACTION");
    const char *from = getenv("SHIM_NTH"), *times = getenv("SHIM_TIMES");
    if (kind && path && what)
        shim_arm(kind, path, atoi(what), from ? atol(from) : 1, times ? atol(times) : 1);
}

/* Counts a call that is wanted, and says what becomes of it. */
static int chosen(void) {
    long at = __atomic_add_fetch(&counts->calls, 1, __ATOMIC_SEQ_CST);
    if (at < nth || (times_left && at >= nth + times_left)) return GO_ON;
    __atomic_add_fetch(&counts->hits, 1, __ATOMIC_SEQ_CST);
    if (action == KILL) syscall(SYS_kill, getpid(), SIGKILL);
    if (action == STOP) syscall(SYS_kill, getpid(), SIGSTOP);
    return action == STOP ? GO_ON : action;
}

static int is_wanted(const char *kind) { return armed && (every || !strcmp(kind, kind_wanted)); }

static int decide(const char *kind, const char *path) {
    if (!path || !is_wanted(kind) || !strstr(path, path_wanted)) return GO_ON;
    int saved = errno, answer = GO_ON;
    if (every) __atomic_add_fetch(&counts->of[number_of(kind)], 1, __ATOMIC_SEQ_CST); else answer = chosen();
    errno = saved;
    return answer;
}

static int decide_fd(const char *kind, int fd) {
    if (!is_wanted(kind)) return GO_ON;
    char name[64] = "/proc/self/fd/", digits[16], path[2048];
    int saved = errno, at = 0;
    if (fd < 0) return GO_ON;
    do digits[at++] = '0' + fd % 10; while (fd /= 10);
    for (size_t end = strlen(name); at; name[end] = 0) name[end++] = digits[--at];
    long length = syscall(SYS_readlink, name, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return GO_ON;
    path[length] = 0;
    return decide(kind, path);
}

static int decide_bytes(size_t bytes) {
    if (!armed || bytes < least_bytes || strcmp("memory", kind_wanted)) return GO_ON;
    return chosen();
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
/* One function with a path or handle `where`; `failed` is what it returns with errno set. */
#define WRAP(type, name, parameters, arguments, asked, failed) \
    type name parameters { \
        REAL(name); \
        int answer = asked; \
        if (answer > 0) { errno = answer; return failed; } \
        type result = real arguments; \
        if (answer == DIE_AFTER) die(); \
        return result; \
    }
/* As WRAP for those that return the error's number. */
#define WRAP_NUMBER(name, parameters, arguments, asked) \
    int name parameters { \
        REAL(name); \
        int answer = asked; \
        if (answer > 0) return answer; \
        int result = real arguments; \
        if (answer == DIE_AFTER) die(); \
        return result; \
    }
/* As WRAP for those that move `bytes` of a buffer: they can be cut, and are when the process dies within them. */
#define WRAP_BYTES(type, name, parameters, arguments, asked, bytes) \
    type name parameters { \
        REAL(name); \
        int answer = asked; \
        if (answer > 0) { errno = answer; return -1; } \
        if (answer < 0 && bytes > 1) bytes /= 2; \
        type result = real arguments; \
        if (answer == DIE_AFTER) die(); \
        return result; \
    }

#define WRAP_OPEN(name, parameters, ...) \
    int name parameters { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        int answer = decide("open", path); \
        if (answer > 0) { errno = answer; return -1; } \
        int result = real(__VA_ARGS__, mode); \
        if (answer == DIE_AFTER) die(); \
        return result; \
    }
#define OPEN_PARAMETERS (const char *path, int flags, ...)
#define OPENAT_PARAMETERS (int folder, const char *path, int flags, ...)
WRAP_OPEN(open, OPEN_PARAMETERS, path, flags)
WRAP_OPEN(open64, OPEN_PARAMETERS, path, flags)
WRAP_OPEN(openat, OPENAT_PARAMETERS, folder, path, flags)
WRAP_OPEN(openat64, OPENAT_PARAMETERS, folder, path, flags)

WRAP_BYTES(ssize_t, read, (int fd, void *to, size_t n), (fd, to, n), decide_fd("read", fd), n)
WRAP_BYTES(ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), decide_fd("read", fd), n)
WRAP_BYTES(ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at), decide_fd("read", fd), n)
WRAP(ssize_t, readv, (int fd, const struct iovec *to, int n), (fd, to, n), decide_fd("read", fd), -1)
WRAP(ssize_t, preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at), decide_fd("read", fd), -1)
WRAP(ssize_t, preadv64v2, (int fd, const struct iovec *to, int n, off64_t at, int flags), (fd, to, n, at, flags),
     decide_fd("read", fd), -1)
WRAP_BYTES(ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n), decide_fd("write", fd), n)
WRAP_BYTES(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at),
           decide_fd("write", fd), n)
WRAP_BYTES(ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at),
           decide_fd("write", fd), n)
WRAP(ssize_t, writev, (int fd, const struct iovec *from, int n), (fd, from, n), decide_fd("write", fd), -1)
WRAP(ssize_t, pwritev, (int fd, const struct iovec *from, int n, off_t at), (fd, from, n, at),
     decide_fd("write", fd), -1)
WRAP(ssize_t, pwritev64v2, (int fd, const struct iovec *from, int n, off64_t at, int flags),
     (fd, from, n, at, flags), decide_fd("write", fd), -1)
WRAP_BYTES(ssize_t, sendfile, (int to, int from, off_t *at, size_t n), (to, from, at, n), decide_fd("copy", to), n)
WRAP_BYTES(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t n), (to, from, at, n),
           decide_fd("copy", to), n)
WRAP_BYTES(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags),
           (from, a, to, b, n, flags), decide_fd("copy", to), n)

WRAP(int, fsync, (int fd), (fd), decide_fd("sync", fd), -1)
WRAP(int, fdatasync, (int fd), (fd), decide_fd("sync", fd), -1)
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), decide_fd("truncate", fd), -1)
WRAP(int, ftruncate64, (int fd, off64_t n), (fd, n), decide_fd("truncate", fd), -1)
WRAP_NUMBER(posix_fallocate, (int fd, off_t at, off_t n), (fd, at, n), decide_fd("truncate", fd))
WRAP_NUMBER(posix_fallocate64, (int fd, off64_t at, off64_t n), (fd, at, n), decide_fd("truncate", fd))
WRAP_NUMBER(posix_fadvise, (int fd, off_t at, off_t n, int what), (fd, at, n, what), decide_fd("advise", fd))
WRAP_NUMBER(posix_fadvise64, (int fd, off64_t at, off64_t n, int what), (fd, at, n, what), decide_fd("advise", fd))
WRAP(int, flock, (int fd, int what), (fd, what), decide_fd("lock", fd), -1)

#define WRAP_FCNTL(name) \
    int name(int fd, int command, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, command); \
        void *argument = va_arg(more, void *); \
        va_end(more); \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
        int answer = locks ? decide_fd("lock", fd) : GO_ON; \
        if (answer > 0) { errno = answer; return -1; } \
        int result = real(fd, command, argument); \
        if (answer == DIE_AFTER) die(); \
        return result; \
    }
WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

WRAP(int, rename, (const char *from, const char *to), (from, to), decide("rename", to), -1)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), decide("rename", to), -1)
WRAP(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags),
     decide("rename", to), -1)
WRAP(int, link, (const char *from, const char *to), (from, to), decide("link", to), -1)
WRAP(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags),
     decide("link", to), -1)
WRAP(int, unlink, (const char *path), (path), decide("unlink", path), -1)
WRAP(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), decide("unlink", path), -1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), decide("mkdir", path), -1)

WRAP(int, stat, (const char *path, struct stat *to), (path, to), decide("stat", path), -1)
WRAP(int, lstat, (const char *path, struct stat *to), (path, to), decide("stat", path), -1)
WRAP(int, fstat, (int fd, struct stat *to), (fd, to), decide_fd("stat", fd), -1)
WRAP(int, stat64, (const char *path, struct stat64 *to), (path, to), decide("stat", path), -1)
WRAP(int, lstat64, (const char *path, struct stat64 *to), (path, to), decide("stat", path), -1)
WRAP(int, fstat64, (int fd, struct stat64 *to), (fd, to), decide_fd("stat", fd), -1)
WRAP(int, fstatat64, (int folder, const char *path, struct stat64 *to, int flags), (folder, path, to, flags),
     decide("stat", path), -1)
WRAP(int, statvfs64, (const char *path, struct statvfs64 *to), (path, to), decide("stat", path), -1)
WRAP(DIR *, opendir, (const char *path), (path), decide("list", path), NULL)
WRAP(struct dirent64 *, readdir64, (DIR *folder), (folder), decide_fd("list", dirfd(folder)), NULL)

/* The handle is gone all the same, as Linux has it. */
int close(int fd) {
    REAL(close);
    int answer = decide_fd("close", fd), result = real(fd);
    if (answer == DIE_AFTER) die();
    if (answer > 0) { errno = answer; return -1; }
    return result;
}

#define WRAP_MMAP(name, offset) \
    void *name(void *at, size_t n, int protection, int flags, int fd, offset from) { \
        REAL(name); \
        int answer = flags & MAP_ANONYMOUS ? decide_bytes(n) : decide_fd("map", fd); \
        if (answer > 0) { errno = answer; return MAP_FAILED; } \
        return real(at, n, protection, flags, fd, from); \
    }
WRAP_MMAP(mmap, off_t)
WRAP_MMAP(mmap64, off64_t)

/* dlsym allocates, so these have their own way to the real ones. */
#define WRAP_MEMORY(name, parameters, arguments, bytes) \
    void *name parameters { \
        int answer = decide_bytes(bytes); \
        if (answer > 0) { errno = answer; return NULL; } \
        return __libc_##name arguments; \
    }
WRAP_MEMORY(malloc, (size_t n), (n), n)
WRAP_MEMORY(calloc, (size_t n, size_t each), (n, each), n * each)
WRAP_MEMORY(realloc, (void *old, size_t n), (old, n), n)
WRAP_MEMORY(memalign, (size_t alignment, size_t n), (alignment, n), n)

void *aligned_alloc(size_t alignment, size_t n) { return memalign(alignment, n); }

int posix_memalign(void **to, size_t alignment, size_t n) {
    int answer = decide_bytes(n);
    if (answer > 0) return answer;
    void *found = __libc_memalign(alignment, n);
    if (!found) return ENOMEM;
    *to = found;
    return 0;
}
