/* A program that is put in a jail and says what it is there. Static: a jail has no libraries. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

extern char **environ;

static void list(const char *path) {
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    printf("ls %s:", path);
    for (int i = 0; i < count; i++)
        if (names[i]->d_name[0] != '.') printf(" %s", names[i]->d_name);
    printf("\n");
}

static void device(const char *path) {
    struct stat st;
    if (stat(path, &st) == 0)
        printf("dev %s: %u:%u %o %u\n", path, major(st.st_rdev), minor(st.st_rdev), st.st_mode, st.st_uid);
}

static void attempt(const char *what, int answer) {
    printf("%s: %s\n", what, answer < 0 ? strerror(errno) : "done");
}

int main(int argc, char **argv) {
    uid_t r, e, s;
    gid_t a, b, c;
    getresuid(&r, &e, &s);
    getresgid(&a, &b, &c);
    printf("ids: %u %u %u %u %u %u groups %d\n", r, e, s, a, b, c, getgroups(0, NULL));
    printf("argv:");
    for (int i = 0; i < argc; i++) printf(" %s", argv[i]);
    printf("\nenvironment: %s\n", environ[0] ? environ[0] : "empty");
    printf("pid: %d sid: %d\n", getpid(), getsid(0));
    printf("no new privs: %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    int bounding = 0;
    for (int cap = 0; cap < 64; cap++) bounding += prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1;
    printf("bounding: %d\n", bounding);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("no-file: %lu\n", limit.rlim_max);
    getrlimit(RLIMIT_FSIZE, &limit);
    printf("fsize: %ld\n", (long)limit.rlim_max);
    getrlimit(RLIMIT_CORE, &limit);
    printf("core: %lu\n", limit.rlim_max);
    int inherited = 0;
    for (int fd = 3; fd < 1024; fd++) inherited += fcntl(fd, F_GETFD) >= 0;
    printf("descriptors: %d\n", inherited);
    char where[256];
    printf("cwd: %s\n", getcwd(where, sizeof where));
    list("/");
    list("/dev");
    list("/proc");
    ssize_t length = readlink("/proc/self/fd/3", where, sizeof where - 1);
    if (length > 0) printf("passed: %.*s\n", (int)length, where);
    attempt("write proc", open("/proc/self/comm", O_WRONLY));
    device("/dev/kvm");
    device("/dev/net/tun");
    device("/dev/urandom");
    int urandom = open("/dev/urandom", O_RDONLY);
    attempt("read urandom", read(urandom, where, 1));
    close(urandom);
    attempt("write the program", open(argv[0], O_WRONLY));
    attempt("make a file", creat("/made", 0700));
    attempt("setuid", setuid(0));
    attempt("chroot", chroot("/run"));
    if (argc > 1 && strcmp(argv[argc - 1], "wait") == 0) {
        fflush(stdout);
        pause();
    }
    return 0;
}
