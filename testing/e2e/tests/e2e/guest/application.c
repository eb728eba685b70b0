/* An application as an image may hold it: one program that says what it finds, or serves until it is
 * told to end. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile sig_atomic_t told;

static void tell(int number) { told = number; }

static void look(const char *path) {
    struct stat found;
    if (stat(path, &found) == 0)
        printf("%s %o\n", path, (unsigned)(found.st_mode & 07777));
    else
        printf("%s missing\n", path);
}

static int serve(void) {
    struct sigaction action = {.sa_handler = tell};
    int signals[] = {SIGTERM, SIGINT, SIGQUIT};
    for (unsigned i = 0; i < 3; i++) sigaction(signals[i], &action, NULL);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8)) {
        perror("listen");
        return 1;
    }
    puts("serving");
    while (!told) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        const char *answer = "HTTP/1.0 200 OK\r\n\r\nhello from the application\n";
        char request[1024];
        if (read(client, request, sizeof request) > 0) {
            size_t rest = strlen(answer);
            if (write(client, answer, rest) < 0) perror("write");
        }
        close(client);
    }
    printf("ending by signal %d\n", (int)told);
    return 7;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count > 1 && strcmp(words[1], "serve") == 0) return serve();
    for (int i = 1; i < count; i++) printf("word %s\n", words[i]);
    const char *color = getenv("COLOR"), *home = getenv("HOME"), *path = getenv("PATH");
    printf("COLOR=%s HOME=%s PATH=%s\n", color ? color : "-", home ? home : "-", path ? path : "-");
    char directory[4096];
    printf("in %s\n", getcwd(directory, sizeof directory) ? directory : "-");
    printf("user %d group %d\n", (int)getuid(), (int)getgid());
    const char *paths[] = {"/vol/ume", "/tmp", "/etc/resolv.conf", "/etc/hosts", "/dev/pts/ptmx",
                           "/dev/shm", "/proc/self", "/sys/kernel", "/run"};
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) look(paths[i]);
    fprintf(stderr, "an error\n");
    return 42;
}
