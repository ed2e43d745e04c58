/* A stand-in VMM for jails, static because a jail has no libraries: it says what it finds, and answers. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int serve(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(s, (void *)&address, sizeof address) || listen(s, 8)) {
        printf("bind %s: %s\n", path, strerror(errno));
        exit(1);
    }
    return s;
}

static void look(const char *path) {
    char text[32] = "";
    struct stat st;
    if (stat(path, &st)) return;
    int r = open(path, O_RDONLY);
    if (r >= 0 && read(r, text, sizeof text - 1) < 0) strcpy(text, strerror(errno));
    int w = open(path, O_WRONLY);
    printf("%s: %ld bytes, begins %.8s, write %s\n", path, (long)st.st_size, text[0] == 0x7f ? text + 1 : text,
           w >= 0 ? "allowed" : strerror(errno));
    if (w >= 0 && write(w, "written in the jail", 19) != 19) printf("write: %s\n", strerror(errno));
}

int main(int argc, char **argv) {
    const char *api = "", *config = "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i + 1 < argc; i++) {
        if (!strcmp(argv[i], "--api-sock")) api = argv[i + 1];
        if (!strcmp(argv[i], "--config-file")) config = argv[i + 1];
    }
    static char text[65536];
    int f = open(config, O_RDONLY);
    ssize_t n = f < 0 ? -1 : read(f, text, sizeof text - 1);
    printf("config %s %s\n", config, n > 0 ? text : strerror(errno));
    if (strstr(text, "\"boot_args\":\"die\"")) {
        printf("boom: no such kernel\n");
        return 3;
    }
    look("/vmlinux");
    look("/initrd");
    look("/root-fs");
    look("/data");
    look("/etc/firecracker.json");
    look("/etc/snapshot/state");
    look("/etc/snapshot/memory");
    look("/etc/snapshot/layer");
    /* What a jailer left it: only a sealed memory has seals. */
    struct stat st;
    int seals = fcntl(3, F_GET_SEALS);
    if (seals >= 0 && !fstat(3, &st)) {
        int again = open("/proc/self/fd/3", O_RDWR);
        printf("passed: %ld bytes, seals %#x, write %s\n", (long)st.st_size, seals,
               write(again, "x", 1) < 0 ? strerror(errno) : "allowed");
        printf("pid %d\n", getpid());
    }
    if (strstr(text, "\"boot_args\":\"fork\"") && fork() == 0)
        for (;;) pause();
    if (strstr(text, "\"boot_args\":\"bomb\"") && fork() == 0)
        for (time_t until = time(NULL) + 20; time(NULL) < until;)
            if (fork() < 0) usleep(1000);
    serve("/vsock.sock");
    int s = serve(api);
    for (;;) {
        int c = accept(s, NULL, NULL);
        char asked[4096];
        const char *body = "{\"id\":\"x\",\"state\":\"Running\",\"vmm_version\":\"1\",\"app_name\":\"stand-in\"}";
        ssize_t got = read(c, asked, sizeof asked - 1);
        asked[got > 0 ? got : 0] = 0;
        if (!strncmp(asked, "PUT ", 4)) {
            printf("asked %s\n", strstr(asked, "\r\n\r\n") + 4);
            dprintf(c, strstr(text, "refuse") ? "HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}"
                                              : "HTTP/1.1 204 \r\n\r\n");
        } else if (got > 0)
            dprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
        close(c);
    }
}
