/* A disk that fails on cue. Preloaded into a process, it writes down each call that changes something below one folder,
 * and has one of them fail or be the process's last; all other files are left alone. tests/rehearsal.py sets:
 *
 *   FAULT_FOLDER   absolute path; without it nothing happens
 *   FAULT_LOG      a file that gets a line per call: kind, 0 or errno (-9 where it killed), path,
 *                  new path of a link or rename
 *   FAULT_CALL     open, write, fsync, link, rename, mkdir, unlink, or any
 *   FAULT_NUMBER   which of these calls fails, from 1
 *   FAULT_ERRNO    what it fails with; 0 kills the process
 *   FAULT_LASTING  if set, all later ones fail too
 *
 * A write that fails does what a full disk does: it takes half, says so, and refuses the rest.
 * Only the entry points that vgid comes to through CPython are here; a test compares the log with the files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long seen, rest_is_refused;

static long number(const char *name) {
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

static int is_below(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    size_t length = folder ? strlen(folder) : 0;
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static const char *path_of(int descriptor, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = getenv("FAULT_FOLDER") ? readlink(name, path, PATH_MAX - 1) : 0;
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static void note(const char *call, int error, const char *path, const char *target) {
    char line[2 * PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s\t%d\t%s\t%s\n", call, error, path, target);
    int log = syscall(SYS_openat, AT_FDCWD, getenv("FAULT_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    syscall(SYS_write, log, line, length);
    syscall(SYS_close, log);
}

static int is_chosen(const char *call) {
    const char *chosen = getenv("FAULT_CALL");
    if (!chosen || (strcmp(chosen, "any") && strcmp(chosen, call))) return 0;
    seen++;
    return seen == number("FAULT_NUMBER") || (seen > number("FAULT_NUMBER") && getenv("FAULT_LASTING"));
}

static int refuse(const char *call, const char *path, const char *target) {
    int error = number("FAULT_ERRNO");
    note(call, error ? error : -SIGKILL, path, target);
    if (!error) syscall(SYS_kill, getpid(), SIGKILL);
    errno = error;
    return -1;
}

static long done(const char *call, long result, const char *path, const char *target) {
    int error = errno;
    note(call, result < 0 ? error : 0, path, target);
    errno = error;
    return result;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!is_below(path_of(descriptor, path))) return REAL(write)(descriptor, data, size);
    if (rest_is_refused) {
        rest_is_refused = 0;
        return refuse("write", path, "");
    }
    if (!is_chosen("write")) return done("write", REAL(write)(descriptor, data, size), path, "");
    ssize_t taken = REAL(write)(descriptor, data, size / 2);
    if (taken <= 0 || !number("FAULT_ERRNO")) return refuse("write", path, "");
    rest_is_refused = 1;
    return taken;
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if ((flags & O_ACCMODE) == O_RDONLY || !is_below(path)) return REAL(open64)(path, flags, mode);
    return is_chosen("open") ? refuse("open", path, "") : done("open", REAL(open64)(path, flags, mode), path, "");
}

int fsync(int descriptor) {
    char path[PATH_MAX];
    if (!is_below(path_of(descriptor, path))) return REAL(fsync)(descriptor);
    return is_chosen("fsync") ? refuse("fsync", path, "") : done("fsync", REAL(fsync)(descriptor), path, "");
}

int link(const char *path, const char *target) {
    if (!is_below(target)) return REAL(link)(path, target);
    return is_chosen("link") ? refuse("link", path, target) : done("link", REAL(link)(path, target), path, target);
}

int rename(const char *path, const char *target) {
    if (!is_below(target)) return REAL(rename)(path, target);
    if (is_chosen("rename")) return refuse("rename", path, target);
    return done("rename", REAL(rename)(path, target), path, target);
}

int mkdir(const char *path, mode_t mode) {
    if (!is_below(path) || !strcmp(path, getenv("FAULT_FOLDER"))) return REAL(mkdir)(path, mode);
    return is_chosen("mkdir") ? refuse("mkdir", path, "") : done("mkdir", REAL(mkdir)(path, mode), path, "");
}

int unlink(const char *path) {
    if (!is_below(path)) return REAL(unlink)(path);
    return is_chosen("unlink") ? refuse("unlink", path, "") : done("unlink", REAL(unlink)(path), path, "");
}
