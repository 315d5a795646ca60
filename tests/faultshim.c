/* Makes calls that change files fail, or kills the process at one of them.
 *
 * Preloaded (LD_PRELOAD) into a process, it stands between every library in it and
 * libc. Calls on what lies in one folder are counted; call number N can be made to fail
 * as on a full or a broken disk, or be the last thing the process ever wanted to do.
 * tests/faults.py builds it and says which faults there are.
 *
 *   GEOUNET_FAULT_DIR    the folder, absolute and without symbolic links
 *   GEOUNET_FAULT        the fault, such as ENOSPC@7; none: calls are only counted
 *   GEOUNET_FAULT_CALLS  the kinds that count, such as fsync,rename; all that write
 *                        unless given
 *   GEOUNET_FAULT_STATE  a file of struct state, of zeros at first, for the counts:
 *                        several processes count together, and one that is killed
 *                        leaves its counts there
 *   GEOUNET_FAULT_LOG    a file to which a line is added for every call that succeeded
 *                        and for every fault: number, kind or fault, path, second path
 *   GEOUNET_FAULT_GRAVE  a folder, on the disk of the first, that keeps a link to
 *                        whatever a rename or an unlink is about to take away, under
 *                        the number of the call
 *
 * libc's own stdio does not go through the functions that are interposed here, so
 * streams of watched files are made anew on top of them (fopencookie). What is written
 * through a shared mapping of a file cannot be seen: only a real full disk shows that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utime.h>

/* --- what is counted, and what happens --------------------------------------------- */

/* tests/faults.py knows this order. */
enum kind {
    OPEN, WRITE, FSYNC, RENAME, UNLINK, RMDIR, MKDIR, LINK, TRUNCATE, ALLOCATE, UTIME,
    READ, KINDS
};
static const char *const NAMES[KINDS] = {
    "open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", "link", "truncate",
    "allocate", "utime", "read",
};
#define ALL_THAT_WRITE ((1 << READ) - 1)

enum mode { COUNT, FAIL, KILL, KILLPG };

struct state {
    _Atomic int64_t calls;         /* of the kinds that count */
    _Atomic int64_t faults;        /* how many of them were made to fail */
    _Atomic int64_t kinds[KINDS];  /* calls, by kind */
    int64_t mode, error, lasting, halved, first, counted;
};

static struct state unshared = {.counted = ALL_THAT_WRITE};
static struct state *state = &unshared;
static char folder[PATH_MAX];
static const char *grave;
static int journal = -1;

static void note(int64_t number, const char *what, const char *path, const char *to)
{
    char line[3 * PATH_MAX];
    if (journal < 0)
        return;
    int length = snprintf(line, sizeof line, "%lld\t%s\t%s\t%s\n", (long long)number,
                          what, path, to ? to : "");
    syscall(SYS_write, journal, line, (size_t)length);
}

/* Arms a fault from now on, and counts from 0: for a process that has long begun.
 * Returns 0, or -1 if the fault or a kind has no such name. */
int shim_arm(const char *where, const char *fault, const char *calls)
{
    static const struct { const char *name; int mode, error, halved; } FAULTS[] = {
        {"ENOSPC", FAIL, ENOSPC, 0}, {"EDQUOT", FAIL, EDQUOT, 0},
        {"EIO", FAIL, EIO, 0},       {"SHORT", FAIL, ENOSPC, 1},
        {"KILL", KILL, 0, 0},        {"KILLPG", KILLPG, 0, 0},
    };
    char kinds[256], *rest, *name;
    snprintf(folder, sizeof folder, "%s", where ? where : "");
    state->mode = COUNT;
    state->counted = calls && *calls ? 0 : ALL_THAT_WRITE;
    snprintf(kinds, sizeof kinds, "%s", calls ? calls : "");
    for (name = strtok_r(kinds, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        int kind = 0;
        while (kind < KINDS && strcmp(name, NAMES[kind]))
            kind++;
        if (kind == KINDS)
            return -1;
        state->counted |= 1 << kind;
    }
    state->calls = state->faults = 0;
    for (int kind = 0; kind < KINDS; kind++)
        state->kinds[kind] = 0;
    if (!fault || !*fault)
        return 0;
    const char *at = strchr(fault, '@');
    for (size_t i = 0; at && i < sizeof FAULTS / sizeof *FAULTS; i++) {
        size_t length = strlen(FAULTS[i].name);
        if ((size_t)(at - fault) != length || strncmp(fault, FAULTS[i].name, length))
            continue;
        state->first = strtoll(at + 1, &rest, 10);
        state->halved = FAULTS[i].halved;
        state->lasting = *rest == '+' || state->halved;
        state->error = FAULTS[i].error;
        state->mode = FAULTS[i].mode;
        return 0;
    }
    return -1;
}

__attribute__((constructor)) static void begin(void)
{
    const char *where = getenv("GEOUNET_FAULT_DIR"), *name;
    snprintf(folder, sizeof folder, "%s", where ? where : "");
    if ((name = getenv("GEOUNET_FAULT_STATE"))) {
        int file = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
        void *shared = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED,
                            file, 0);
        syscall(SYS_close, file);
        if (shared == MAP_FAILED) {
            perror("faultshim: GEOUNET_FAULT_STATE");
            _exit(97);
        }
        state = shared;
    }
    if ((name = getenv("GEOUNET_FAULT_LOG")))
        journal = (int)syscall(SYS_openat, AT_FDCWD, name,
                               O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    grave = getenv("GEOUNET_FAULT_GRAVE");
    if (state->mode || state->calls)
        return; /* not the first process */
    if (shim_arm(where, getenv("GEOUNET_FAULT"), getenv("GEOUNET_FAULT_CALLS"))) {
        static const char said[] = "faultshim: no such fault, or kind of call\n";
        syscall(SYS_write, 2, said, sizeof said - 1);
        _exit(97);
    }
}

/* What is to become of a call: its number, 0 if it does not count; the error it gets;
 * and whether a write may do half of its work instead. */
struct verdict { int64_t number; int error, halved; };

/* Does not return if the process is to end here. */
static struct verdict judge(enum kind kind, int takes_room, const char *path,
                            const char *to)
{
    struct verdict given = {0, 0, 0};
    if (!(state->counted >> kind & 1))
        return given;
    given.number = ++state->calls;
    state->kinds[kind]++;
    if (state->mode == COUNT || given.number < state->first)
        return given;
    if (given.number > state->first && !state->lasting)
        return given;
    if (state->mode != FAIL) {
        state->faults++;
        note(given.number, state->mode == KILL ? "KILL" : "KILLPG", path, to);
        syscall(SYS_kill, state->mode == KILL ? getpid() : 0, SIGKILL);
        for (;;)
            pause();
    }
    /* a disk stays full for what takes room; one that broke is broken for all */
    if (state->lasting && state->error != EIO && !takes_room)
        return given;
    state->faults++;
    given.error = (int)state->error;
    given.halved = state->halved && given.number == state->first;
    note(given.number, strerrorname_np(given.error), path, to);
    return given;
}

/* --- which files ------------------------------------------------------------------- */

static int inside(const char *path)
{
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) &&
           (path[length] == '/' || path[length] == 0);
}

/* The path of an open file, if it lies in the folder. */
static int watched_file(int file, char *path)
{
    char link[32];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    errno = saved;
    if (length < 0)
        return 0;
    path[length] = 0;
    return inside(path);
}

/* Takes "." and ".." and doubled slashes out of an absolute path. */
static void collapse(char *path)
{
    char *out = path, *part = path;
    while (*part) {
        size_t length = strcspn(++part, "/");
        if (length == 2 && !strncmp(part, "..", 2))
            while (out > path && *--out != '/')
                ;
        else if (length && !(length == 1 && *part == '.')) {
            *out++ = '/';
            memmove(out, part, length);
            out += length;
        }
        part += length;
    }
    *out = 0;
}

/* The absolute path of a name, if it lies in the folder. */
static int watched_name(int at, const char *name, char *path)
{
    if (!name)
        return 0;
    if (*name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        collapse(path);
        return inside(path);
    }
    char base[PATH_MAX], link[32];
    int saved = errno;
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d",
             at);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    errno = saved;
    if (length < 0)
        return 0;
    base[length] = 0;
    snprintf(path, PATH_MAX, "%.*s/%s", PATH_MAX / 2, base, name);
    collapse(path);
    return inside(path);
}

static int exists(const char *path)
{
    int saved = errno;
    int found = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
    errno = saved;
    return found;
}

static void bury(int64_t number, const char *path)
{
    char name[PATH_MAX];
    int saved = errno;
    if (!grave || !number)
        return;
    snprintf(name, sizeof name, "%s/%lld", grave, (long long)number);
    syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, name, 0);
    errno = saved;
}

/* --- the functions in between ------------------------------------------------------ */

#define REAL(name) __extension__({                                                    \
    static __typeof__(name) *real;                                                    \
    if (!real)                                                                        \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);                           \
    real; })

/* One call: judged, done, noted. */
#define TAKES_ROOM(kind) (kind == WRITE || kind == MKDIR || kind == LINK || kind == ALLOCATE)
#define DO(kind, path, to, call) __extension__({                                      \
    struct verdict given_ = judge(kind, TAKES_ROOM(kind), path, to);                  \
    __typeof__(call) result_ = -1;                                                    \
    if (given_.error)                                                                 \
        errno = given_.error;                                                         \
    else if ((result_ = (call)) >= 0 && given_.number)                                \
        note(given_.number, NAMES[kind], path, to);                                   \
    result_; })

#define ON_FILE(kind, file, call) __extension__({                                     \
    char path_[PATH_MAX];                                                             \
    watched_file(file, path_) ? DO(kind, path_, NULL, call) : (call); })

#define ON_NAME(kind, at, name, call) __extension__({                                 \
    char path_[PATH_MAX];                                                             \
    watched_name(at, name, path_) ? DO(kind, path_, NULL, call) : (call); })

/* writing: half of it is done where the fault is SHORT */

#define WRITING(file, size, call) __extension__({                                     \
    char path_[PATH_MAX];                                                             \
    ssize_t done_ = -1;                                                               \
    if (!watched_file(file, path_))                                                   \
        done_ = (call);                                                               \
    else {                                                                            \
        struct verdict given_ = judge(WRITE, 1, path_, NULL);                         \
        if (given_.halved && size > 1)                                                \
            size /= 2;                                                                \
        else                                                                          \
            given_.halved = 0;                                                        \
        if (given_.error && !given_.halved)                                           \
            errno = given_.error;                                                     \
        else if ((done_ = (call)) >= 0)                                               \
            note(given_.number, NAMES[WRITE], path_, NULL);                           \
    }                                                                                 \
    done_; })

ssize_t write(int file, const void *data, size_t size)
{
    return WRITING(file, size, REAL(write)(file, data, size));
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    return WRITING(file, size, REAL(pwrite)(file, data, size, offset));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset)
{
    return WRITING(file, size, REAL(pwrite64)(file, data, size, offset));
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size)
{
    return WRITING(to, size, REAL(sendfile)(to, from, offset, size));
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t size)
{
    return WRITING(to, size, REAL(sendfile64)(to, from, offset, size));
}

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *offset, size_t size,
                        unsigned flags)
{
    return WRITING(to, size,
                   REAL(copy_file_range)(from, start, to, offset, size, flags));
}

ssize_t writev(int file, const struct iovec *pieces, int count)
{
    return ON_FILE(WRITE, file, REAL(writev)(file, pieces, count));
}

ssize_t pwritev(int file, const struct iovec *pieces, int count, off_t offset)
{
    return ON_FILE(WRITE, file, REAL(pwritev)(file, pieces, count, offset));
}

ssize_t pwritev64(int file, const struct iovec *pieces, int count, off64_t offset)
{
    return ON_FILE(WRITE, file, REAL(pwritev64)(file, pieces, count, offset));
}

/* reading, which counts only where it is asked for */

ssize_t read(int file, void *data, size_t size)
{
    return ON_FILE(READ, file, REAL(read)(file, data, size));
}

ssize_t pread(int file, void *data, size_t size, off_t offset)
{
    return ON_FILE(READ, file, REAL(pread)(file, data, size, offset));
}

ssize_t pread64(int file, void *data, size_t size, off64_t offset)
{
    return ON_FILE(READ, file, REAL(pread64)(file, data, size, offset));
}

/* opening, which counts if it makes, empties or may change a file */

static int open_(int at, const char *name, int flags, mode_t mode)
{
    char path[PATH_MAX];
    int changes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC);
    if (!changes || !watched_name(at, name, path))
        return REAL(openat)(at, name, flags, mode);
    int new = !exists(path);
    struct verdict given = judge(OPEN, new, path, NULL);
    if (given.error) {
        errno = given.error;
        return -1;
    }
    int file = REAL(openat)(at, name, flags, mode);
    if (file >= 0 && given.number && (new || flags & O_TRUNC))
        note(given.number, new ? "create" : "empty", path, NULL);
    return file;
}

#define MODE_OF(flags) __extension__({                                                \
    mode_t mode_ = 0;                                                                 \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                            \
        va_list rest_;                                                                \
        va_start(rest_, flags);                                                       \
        mode_ = va_arg(rest_, mode_t);                                                \
        va_end(rest_);                                                                \
    }                                                                                 \
    mode_; })

int open(const char *name, int flags, ...)
{
    return open_(AT_FDCWD, name, flags, MODE_OF(flags));
}

int open64(const char *name, int flags, ...)
{
    return open_(AT_FDCWD, name, flags, MODE_OF(flags));
}

int openat(int at, const char *name, int flags, ...)
{
    return open_(at, name, flags, MODE_OF(flags));
}

int openat64(int at, const char *name, int flags, ...)
{
    return open_(at, name, flags, MODE_OF(flags));
}

int __open_2(const char *name, int flags) { return open_(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return open_(AT_FDCWD, name, flags, 0); }
int __openat_2(int at, const char *name, int flags) { return open_(at, name, flags, 0); }
int __openat64_2(int at, const char *name, int flags)
{
    return open_(at, name, flags, 0);
}

int creat(const char *name, mode_t mode)
{
    return open_(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

int creat64(const char *name, mode_t mode)
{
    return open_(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

/* streams: libc writes them without asking us, so ours ask us */

static ssize_t stream_write(void *file, const char *data, size_t size)
{
    size_t done = 0; /* a cookie that returns less has failed, for libc */
    while (done < size) {
        ssize_t more = write((int)(intptr_t)file, data + done, size - done);
        if (more < 0 && errno != EINTR)
            break;
        done += more < 0 ? 0 : (size_t)more;
    }
    return (ssize_t)done;
}

static ssize_t stream_read(void *file, char *data, size_t size)
{
    return read((int)(intptr_t)file, data, size);
}

static int stream_seek(void *file, off64_t *offset, int whence)
{
    off64_t now = lseek64((int)(intptr_t)file, *offset, whence);
    if (now < 0)
        return -1;
    *offset = now;
    return 0;
}

static int stream_close(void *file) { return close((int)(intptr_t)file); }

static FILE *stream(int file, const char *mode)
{
    static const cookie_io_functions_t ours = {stream_read, stream_write, stream_seek,
                                               stream_close};
    FILE *made = fopencookie((void *)(intptr_t)file, mode, ours);
    if (made)
        made->_fileno = file; /* so that fileno() answers */
    return made;
}

static FILE *fopen_(const char *name, const char *mode)
{
    int flags = strchr(mode, '+') ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;
    flags |= *mode == 'w' ? O_CREAT | O_TRUNC : *mode == 'a' ? O_CREAT | O_APPEND : 0;
    flags |= (strchr(mode, 'e') ? O_CLOEXEC : 0) | (strchr(mode, 'x') ? O_EXCL : 0);
    int file = open_(AT_FDCWD, name, flags, 0666);
    FILE *made = file < 0 ? NULL : stream(file, mode);
    if (file >= 0 && !made)
        close(file);
    return made;
}

FILE *fopen(const char *name, const char *mode)
{
    char path[PATH_MAX];
    if (!watched_name(AT_FDCWD, name, path))
        return REAL(fopen)(name, mode);
    return fopen_(name, mode);
}

FILE *fopen64(const char *name, const char *mode)
{
    char path[PATH_MAX];
    if (!watched_name(AT_FDCWD, name, path))
        return REAL(fopen64)(name, mode);
    return fopen_(name, mode);
}

FILE *fdopen(int file, const char *mode)
{
    char path[PATH_MAX];
    return watched_file(file, path) ? stream(file, mode) : REAL(fdopen)(file, mode);
}

/* making it last */

/* only for show: nobody pulls the plug of the machine that runs these tests */
#define WAITING(name, file) __extension__({                                           \
    char path_[PATH_MAX];                                                             \
    watched_file(file, path_) ? DO(FSYNC, path_, NULL, 0) : REAL(name)(file); })

int fsync(int file) { return WAITING(fsync, file); }
int fdatasync(int file) { return WAITING(fdatasync, file); }

/* names */

static int rename_(int at, const char *from, int to_at, const char *to, unsigned flags)
{
    char source[PATH_MAX], target[PATH_MAX];
    int watched = watched_name(at, from, source);
    if (!(watched_name(to_at, to, target) || watched))
        return (int)syscall(SYS_renameat2, at, from, to_at, to, flags);
    struct verdict given = judge(RENAME, 0, source, target);
    if (given.error) {
        errno = given.error;
        return -1;
    }
    bury(given.number, target);
    int result = (int)syscall(SYS_renameat2, at, from, to_at, to, flags);
    if (result == 0 && given.number)
        note(given.number, NAMES[RENAME], source, target);
    return result;
}

int rename(const char *from, const char *to)
{
    return rename_(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int at, const char *from, int to_at, const char *to)
{
    return rename_(at, from, to_at, to, 0);
}

int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags)
{
    return rename_(at, from, to_at, to, flags);
}

static int unlink_(int at, const char *name, int flags)
{
    char path[PATH_MAX];
    enum kind kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    if (!watched_name(at, name, path))
        return (int)syscall(SYS_unlinkat, at, name, flags);
    struct verdict given = judge(kind, 0, path, NULL);
    if (given.error) {
        errno = given.error;
        return -1;
    }
    if (kind == UNLINK)
        bury(given.number, path);
    int result = (int)syscall(SYS_unlinkat, at, name, flags);
    if (result == 0 && given.number)
        note(given.number, NAMES[kind], path, NULL);
    return result;
}

int unlink(const char *name) { return unlink_(AT_FDCWD, name, 0); }
int unlinkat(int at, const char *name, int flags) { return unlink_(at, name, flags); }
int rmdir(const char *name) { return unlink_(AT_FDCWD, name, AT_REMOVEDIR); }

int remove(const char *name)
{
    int result = unlink_(AT_FDCWD, name, 0);
    return result && errno == EISDIR ? unlink_(AT_FDCWD, name, AT_REMOVEDIR) : result;
}

int mkdir(const char *name, mode_t mode)
{
    return ON_NAME(MKDIR, AT_FDCWD, name, REAL(mkdir)(name, mode));
}

int mkdirat(int at, const char *name, mode_t mode)
{
    return ON_NAME(MKDIR, at, name, REAL(mkdirat)(at, name, mode));
}

int link(const char *from, const char *to)
{
    return ON_NAME(LINK, AT_FDCWD, to, REAL(link)(from, to));
}

int linkat(int at, const char *from, int to_at, const char *to, int flags)
{
    return ON_NAME(LINK, to_at, to, REAL(linkat)(at, from, to_at, to, flags));
}

int symlink(const char *from, const char *to)
{
    return ON_NAME(LINK, AT_FDCWD, to, REAL(symlink)(from, to));
}

int symlinkat(const char *from, int at, const char *to)
{
    return ON_NAME(LINK, at, to, REAL(symlinkat)(from, at, to));
}

/* sizes and times */

int ftruncate(int file, off_t size)
{
    return ON_FILE(TRUNCATE, file, REAL(ftruncate)(file, size));
}

int ftruncate64(int file, off64_t size)
{
    return ON_FILE(TRUNCATE, file, REAL(ftruncate64)(file, size));
}

int truncate(const char *name, off_t size)
{
    return ON_NAME(TRUNCATE, AT_FDCWD, name, REAL(truncate)(name, size));
}

int truncate64(const char *name, off64_t size)
{
    return ON_NAME(TRUNCATE, AT_FDCWD, name, REAL(truncate64)(name, size));
}

int fallocate(int file, int mode, off_t offset, off_t size)
{
    return ON_FILE(ALLOCATE, file, REAL(fallocate)(file, mode, offset, size));
}

int fallocate64(int file, int mode, off64_t offset, off64_t size)
{
    return ON_FILE(ALLOCATE, file, REAL(fallocate64)(file, mode, offset, size));
}

/* returns the error, and leaves errno alone */
int posix_fallocate(int file, off_t offset, off_t size)
{
    int result = ON_FILE(ALLOCATE, file, REAL(posix_fallocate)(file, offset, size));
    return result < 0 ? errno : result;
}

int posix_fallocate64(int file, off64_t offset, off64_t size)
{
    int result = ON_FILE(ALLOCATE, file, REAL(posix_fallocate64)(file, offset, size));
    return result < 0 ? errno : result;
}

int utime(const char *name, const struct utimbuf *times)
{
    return ON_NAME(UTIME, AT_FDCWD, name, REAL(utime)(name, times));
}

int utimes(const char *name, const struct timeval times[2])
{
    return ON_NAME(UTIME, AT_FDCWD, name, REAL(utimes)(name, times));
}

int utimensat(int at, const char *name, const struct timespec times[2], int flags)
{
    return ON_NAME(UTIME, at, name, REAL(utimensat)(at, name, times, flags));
}

int futimens(int file, const struct timespec times[2])
{
    return ON_FILE(UTIME, file, REAL(futimens)(file, times));
}
