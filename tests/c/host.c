/* A program that does with itself what hosts do: unloads the library, uses ONNX Runtime on its own, forks.
 *
 *     host WHAT LIBRARY ONNXRUNTIME CONFIG MODEL
 *
 * LIBRARY is libcos.so, ONNXRUNTIME libonnxruntime.so, CONFIG the configuration of an engine. MODEL is an .onnx file
 * about which ONNX Runtime logs a warning. WHAT is one of the functions at the end. The output is what a test expects.
 */
#define _GNU_SOURCE

#include "cos.h"

#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
            _exit(1);                                                            \
        }                                                                        \
    } while (0)

static const char *library, *onnxruntime, *config, *model;

/* ---- CoS, found by name, because it is unloaded and loaded again ---- */

static struct {
    void *handle;
    __typeof__(&cos_engine_open) engine_open;
    __typeof__(&cos_engine_describe) engine_describe;
    __typeof__(&cos_engine_decode) engine_decode;
    __typeof__(&cos_engine_free) engine_free;
    __typeof__(&cos_text_stream_new) text_stream_new;
    __typeof__(&cos_text_stream_push) text_stream_push;
    __typeof__(&cos_text_stream_stopped) text_stream_stopped;
    __typeof__(&cos_text_stream_free) text_stream_free;
    __typeof__(&cos_session_new) session_new;
    __typeof__(&cos_prompt) prompt;
    __typeof__(&cos_step) step;
    __typeof__(&cos_cancel) cancel;
    __typeof__(&cos_free) free;
    __typeof__(&cos_error_code) error_code;
    __typeof__(&cos_error_message) error_message;
    __typeof__(&cos_error_free) error_free;
} cos;

static void load(void) {
    cos.handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!cos.handle) {
        fprintf(stderr, "%s\n", dlerror());
        _exit(1);
    }
#define FIND(name) *(void **)&cos.name = dlsym(cos.handle, "cos_" #name)
    FIND(engine_open), FIND(engine_describe), FIND(engine_free), FIND(session_new), FIND(prompt), FIND(step);
    FIND(engine_decode), FIND(text_stream_new), FIND(text_stream_push), FIND(text_stream_stopped);
    FIND(text_stream_free);
    FIND(cancel), FIND(free), FIND(error_code), FIND(error_message), FIND(error_free);
}

static void ok(cos_error *error) {
    if (error) {
        fprintf(stderr, "error %d: %s\n", cos.error_code(error), cos.error_message(error));
        _exit(1);
    }
}

static cos_engine *open_engine(void) {
    cos_engine *engine;
    ok(cos.engine_open(config, &engine));
    return engine;
}

static cos_session *begin(cos_engine *engine) {
    const int32_t prompt[] = {5, 6, 7, 8};
    const int32_t none = 0;
    cos_session_options options = {.struct_size = sizeof options, .max_tokens = 8, .stop_tokens = &none};
    cos_session *session;
    ok(cos.session_new(engine, &options, &session));
    ok(cos.prompt(session, prompt, 4));
    return session;
}

/* Decodes a session to its end. Writes the tokens as text. */
static const char *decode(cos_engine *engine) {
    static char text[200];
    size_t length = 0;
    cos_session *session = begin(engine);
    cos_step_result step = {.struct_size = sizeof step};
    do {
        ok(cos.step(session, &step));
        for (size_t index = 0; index < step.tokens_count; index++)
            length += (size_t)snprintf(text + length, sizeof text - length, " %d", step.tokens[index]);
    } while (step.finish == COS_FINISH_NONE);
    cos.free(session);
    return text;
}

/* Prints which thread pools the models of an engine use. */
static void print_pool(cos_engine *engine) {
    const char *json;
    ok(cos.engine_describe(engine, &json));
    const char *pool = strstr(json, "\"thread_pool\":");
    CHECK(pool);
    printf("pool %.*s\n", (int)strcspn(pool + 15, "\""), pool + 15);
    if (strstr(json, "its own thread pool")) puts("warned");
}

/* ---- ONNX Runtime, as a host uses it: the beginning of its table of functions ---- */

typedef struct {
    void *before[2];
    const char *(*message)(const void *status);
    void *(*create_env)(int level, const char *id, void **env);
    void *(*create_env_with_logger)(void (*log)(void *, int, const char *, const char *, const char *, const char *),
                                    void *data, int level, const char *id, void **env);
    void *between[2];
    void *(*create_session)(void *env, const char *path, void *options, void **session);
    void *more[2];
    void *(*create_options)(void **options);
} Api;

typedef struct {
    const Api *(*api)(uint32_t version);
    const char *(*version)(void);
} Base;

static int logged;

static void host_logs(void *data, int level, const char *category, const char *id, const char *where,
                      const char *message) {
    (void)data, (void)level, (void)category, (void)id, (void)where, (void)message;
    logged++;
}

static const Api *host_api(const char *path) {
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(handle);
    const Base *(*base)(void);
    *(void **)&base = dlsym(handle, "OrtGetApiBase");
    return base()->api(24);
}

static void ort_ok(const Api *api, void *status) {
    if (status) {
        fprintf(stderr, "ONNX Runtime: %s\n", api->message(status));
        _exit(1);
    }
}

/* The host's own environment, with its own logger, or with ONNX Runtime's. */
static void *host_environment(const Api *api, int with_logger) {
    void *env;
    ort_ok(api, with_logger ? api->create_env_with_logger(host_logs, NULL, 2, "host", &env)
                            : api->create_env(3, "host", &env));
    return env;
}

static void host_session(const Api *api, void *env) {
    void *options, *session;
    ort_ok(api, api->create_options(&options));
    ort_ok(api, api->create_session(env, model, options, &session));
}

/* ---- what hosts do ---- */

static sem_t unloaded;

static void *uses_and_outlives(void *data) {
    (void)data;
    cos_engine *engine = open_engine();
    decode(engine);
    cos.engine_free(engine);
    sem_post((sem_t *)data);
    sem_wait(&unloaded);
    return NULL;
}

/* The library is unloaded and loaded again. A thread that used it goes on, and other mappings take its old place. */
static void unload(void) {
    for (int round = 0; round < 3; round++) {
        load();
        sem_t used;
        pthread_t thread;
        sem_init(&used, 0, 0), sem_init(&unloaded, 0, 0);
        pthread_create(&thread, NULL, uses_and_outlives, &used);
        sem_wait(&used);
        Dl_info info;
        CHECK(dladdr(*(void **)&cos.engine_open, &info));
        dlclose(cos.handle);
        mmap(info.dli_fbase, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        sem_post(&unloaded);
        pthread_join(thread, NULL);
        /* The host goes on with the same ONNX Runtime, which logs. */
        const Api *api = host_api(onnxruntime);
        host_session(api, host_environment(api, 1));
    }
    load();
    cos_engine *engine = open_engine();
    printf("text%s\n", decode(engine));
    print_pool(engine);
}

/* The host makes an environment first, and goes on using it. */
static void host_first(void) {
    const Api *api = host_api(onnxruntime);
    void *env = host_environment(api, 1);
    load();
    logged = 0;
    cos_engine *engine = open_engine();
    printf("text%s\n", decode(engine));
    print_pool(engine);
    CHECK(logged == 0); /* the library does not use the host's logger, which the host may free */
    host_session(api, env);
    CHECK(logged > 0); /* the host's logger is still in place */
    cos.engine_free(engine);
    host_session(api, env);
}

/* The host makes an environment after the library. */
static void host_second(void) {
    load();
    cos_engine *engine = open_engine();
    const Api *api = host_api(onnxruntime);
    host_session(api, host_environment(api, 1));
    printf("text%s\n", decode(engine));
    print_pool(engine);
}

/* The host uses another copy of ONNX Runtime, which lies beside MODEL. */
static void host_copy(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s/copy.so", model);
    *strrchr(path, '/') = 0;
    snprintf(strrchr(path, '/'), 20, "/copy.so");
    const Api *api = host_api(path);
    void *env = host_environment(api, 1);
    load();
    cos_engine *engine = open_engine();
    printf("text%s\n", decode(engine));
    print_pool(engine);
    host_session(api, env);
}

/* Waits for a child, which must succeed within some seconds. */
static void end_of(pid_t child) {
    for (int tenths = 0; tenths < 300; tenths++) {
        int status;
        if (waitpid(child, &status, WNOHANG) == child) {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            return;
        }
        usleep(100000);
    }
    kill(child, SIGKILL);
    fputs("a child hangs\n", stderr);
    _exit(1);
}

static sem_t stepping;

static void *steps_on(void *data) {
    cos_session *session = data;
    cos_step_result step = {.struct_size = sizeof step};
    for (int count = 0;; count++) {
        cos_error *error = cos.step(session, &step);
        if (error || step.finish) break;
        if (count == 0) sem_post(&stepping);
    }
    return NULL;
}

static volatile int pushing = 1;

static void *pushes_on(void *stream) {
    int32_t tokens[500];
    for (int index = 0; index < 500; index++) tokens[index] = 100 + index;
    const char *text;
    size_t bytes;
    while (pushing) ok(cos.text_stream_push(stream, tokens, 500, &text, &bytes));
    return NULL;
}

/* A child of fork() gets errors from the objects of its parent, frees them, and ends. */
static void use_in_child(cos_engine *engine, cos_session *session, cos_text_stream *stream) {
    cos_step_result step = {.struct_size = sizeof step};
    cos_session *none;
    cos_text_stream *no_stream;
    const char *text;
    size_t bytes;
    const int32_t token = 1;
    for (int call = 0; call < 8; call++) {
        cos_error *error = call == 0   ? cos.session_new(engine, NULL, &none)
                           : call == 1 ? cos.step(session, &step)
                           : call == 2 ? cos.prompt(session, &token, 1)
                           : call == 3 ? cos.cancel(session)
                           : call == 4 ? cos.engine_decode(engine, &token, 1, NULL, 0, &bytes)
                           : call == 5 ? cos.engine_describe(engine, &text)
                           : call == 6 ? cos.text_stream_new(engine, &no_stream)
                                       : cos.text_stream_push(stream, &token, 1, &text, &bytes);
        CHECK(error && cos.error_code(error) == COS_ERROR_UNSUPPORTED && strstr(cos.error_message(error), "fork()"));
        cos.error_free(error);
    }
    CHECK(!cos.text_stream_stopped(stream)); /* waits for no thread, because the child has no other */
    cos.text_stream_free(stream);
    cos.free(session);
    cos.engine_free(engine);
}

/* The host forks while one session is idle and another one decodes on a thread. Both processes go on. */
static void forks(void) {
    load();
    cos_engine *engine = open_engine();
    printf("text%s\n", decode(engine));
    cos_session_options options = {.struct_size = sizeof options, .stop_tokens = (const int32_t[]){0}};
    cos_session *busy;
    pthread_t thread;
    ok(cos.session_new(engine, &options, &busy));
    ok(cos.prompt(busy, (const int32_t[]){5, 6, 7, 8}, 4));
    sem_init(&stepping, 0, 0);
    pthread_create(&thread, NULL, steps_on, busy);
    sem_wait(&stepping);
    cos_session *session = begin(engine);
    cos_text_stream *stream;
    ok(cos.text_stream_new(engine, &stream));
    pthread_t pusher;
    pthread_create(&pusher, NULL, pushes_on, stream);
    fflush(stdout);
    for (int round = 0; round < 4; round++) {
        pid_t child = fork();
        if (!child) {
            use_in_child(engine, round % 2 ? busy : session, stream);
            if (round < 2) exit(0);
            engine = open_engine();
            printf("text%s\n", decode(engine));
            print_pool(engine);
            exit(0);
        }
        end_of(child);
    }
    ok(cos.cancel(busy));
    pthread_join(thread, NULL);
    pushing = 0;
    pthread_join(pusher, NULL);
    printf("text%s\n", decode(engine));
}

/* The host becomes a daemon after it opened an engine, or forks before it opens one. */
static void daemons(void) {
    load();
    pid_t child = fork();
    if (!child) {
        cos_engine *engine = open_engine();
        cos_session *session = begin(engine);
        cos_text_stream *stream;
        ok(cos.text_stream_new(engine, &stream));
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t before = fork();
        if (!before) {
            CHECK(daemon(1, 1) == 0);
            use_in_child(engine, session, stream);
            engine = open_engine();
            const char *text = decode(engine);
            CHECK(write(pipes[1], text, strlen(text)) > 0);
            exit(0);
        }
        end_of(before);
        char text[200];
        ssize_t length = read(pipes[0], text, sizeof text);
        CHECK(length > 0);
        printf("text%.*s\n", (int)length, text);
        print_pool(engine);
        exit(0);
    }
    end_of(child);
    cos_engine *engine = open_engine();
    printf("text%s\n", decode(engine));
    print_pool(engine);
}

static void *opens(void *data) {
    (void)data;
    open_engine();
    return NULL;
}

/* The host forks while a thread opens the first engine. The child can open one too, or gets an error. */
static void early_forks(void) {
    load();
    for (int delay = 500; delay < 60000; delay *= 2) {
        pid_t host = fork();
        if (!host) {
            pthread_t thread;
            pthread_create(&thread, NULL, opens, NULL);
            usleep((useconds_t)delay);
            pid_t child = fork();
            if (!child) {
                cos_engine *engine;
                cos_error *error = cos.engine_open(config, &engine);
                /* Not exit(): a thread of the host may have held glibc's lock of exit handlers amid the fork. */
                _exit(error && cos.error_code(error) != COS_ERROR_UNSUPPORTED);
            }
            end_of(child);
            pthread_join(thread, NULL);
            _exit(0);
        }
        end_of(host);
    }
}

/* The library was loaded by a relative path. When it looks for ONNX Runtime beside itself, the working directory has
 * changed, and its file is gone, as after an update. */
static void moves(void) {
    char folder[4096];
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(onnxruntime, '/') - onnxruntime), onnxruntime);
    CHECK(symlink(folder, "onnxruntime") == 0 && link(library, "libcos.so") == 0);
    library = "./libcos.so";
    load();
    CHECK(unlink(library) == 0);
    CHECK(chdir("/") == 0);
    unsetenv("ORT_DYLIB_PATH");
    printf("text%s\n", decode(open_engine()));
}

int main(int count, char **values) {
    CHECK(count == 6);
    library = values[2], onnxruntime = values[3], config = values[4], model = values[5];
    static const struct {
        const char *name;
        void (*run)(void);
    } all[] = {{"unload", unload}, {"host_first", host_first}, {"host_second", host_second},
               {"host_copy", host_copy}, {"forks", forks}, {"daemons", daemons}, {"early_forks", early_forks},
               {"moves", moves}};
    for (size_t index = 0; index < sizeof all / sizeof *all; index++)
        if (!strcmp(values[1], all[index].name)) {
            all[index].run();
            puts("done");
            return 0;
        }
    return 2;
}
