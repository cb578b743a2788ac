/* The checks of errors.c, the files that they damage, and engines and sequences of the fixtures. */
#define _GNU_SOURCE /* dladdr, nftw, pthread_tryjoin_np */
#include <cos.h>
#include <dlfcn.h>
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Where a check stands: "FILE:LINE". */
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define HERE __FILE__ ":" TEXT(__LINE__)

#define COUNT(array) (sizeof(array) / sizeof *(array))
/* An array followed by its count, as arguments or as members. */
#define TOKENS(...) (const int32_t[]){__VA_ARGS__}, COUNT(((const int32_t[]){__VA_ARGS__}))
#define FLOATS(...) (const float[]){__VA_ARGS__}, COUNT(((const float[]){__VA_ARGS__}))

/* ---- Checks -------------------------------------------------------------------------------------------------- */

static int checks, failures;

/* Counts a check. If it fails, prints what was expected and what came. */
__attribute__((format(printf, 3, 4))) static void check(const char *where, bool holds, const char *format, ...) {
    checks++;
    if (holds)
        return;
    failures++;
    va_list arguments;
    va_start(arguments, format);
    printf("%s: ", where);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

static void equal(const char *where, const char *what, unsigned long long came, unsigned long long expected) {
    check(where, came == expected, "%s: expected %llu, came %llu", what, expected, came);
}
#define EQUAL(came, expected) equal(HERE, #came, (unsigned long long)(came), (unsigned long long)(expected))

/* Everything that a call may write, and a copy to check that a failed call wrote nothing. */
struct outputs {
    cos_engine *engine;
    cos_session *session;
    cos_text_stream *stream;
    const char *text;
    size_t count;
    double share;
    int32_t tokens[8];
    char chars[8];
    cos_step_result step;
    cos_stats stats;
    char beyond[64];
};
static struct outputs out, untouched;

static void reset(void) {
    memset(&untouched, 0xA5, sizeof untouched);
    untouched.step.struct_size = sizeof untouched.step;
    untouched.stats.struct_size = sizeof untouched.stats;
    memcpy(&out, &untouched, sizeof out);
}

/* out.step and out.stats with another size. */
static cos_step_result *sized_step(size_t size) {
    untouched.step.struct_size = out.step.struct_size = size;
    return &out.step;
}
static cos_stats *sized_stats(size_t size) {
    untouched.stats.struct_size = out.stats.struct_size = size;
    return &out.stats;
}

/* Checks that a call failed with this code, said these things and wrote nothing. Frees the error. */
static void fails(const char *where, const char *call, cos_error *error, int32_t code, const char *const *says) {
    const char *message = cos_error_message(error);
    check(where, cos_error_code(error) == code, "%s: expected error %d, came %d: %s", call, code, cos_error_code(error),
          message);
    for (; error && *says; says++)
        check(where, strstr(message, *says), "%s: expected a message with \"%s\", came: %s", call, *says, message);
    check(where, !strchr(message, '\n'), "%s: expected a message of one where, came: %s", call, message);
    check(where, !memcmp(&out, &untouched, sizeof out), "%s: expected no output, but something was written", call);
    cos_error_free(error);
}
#define FAILS(call, code, ...) \
    (reset(), fails(HERE, #call, (call), COS_ERROR_##code, (const char *const[]){__VA_ARGS__, NULL}))

static bool succeeds(const char *where, const char *call, cos_error *error) {
    bool success = !error;
    check(where, success, "%s: expected success, came error %d: %s", call, cos_error_code(error),
          cos_error_message(error));
    cos_error_free(error);
    return success;
}
#define OK(call) succeeds(HERE, #call, (call))

/* ---- Files and configurations --------------------------------------------------------------------------------- */

static const char *root;
static const char *work; /* a new folder in the working directory */

/* Replaces ' by ", $ by the folder of fixtures and @ by the working folder. The text is valid for four calls. */
static const char *text(const char *pattern) {
    static char texts[4][8 * PATH_MAX];
    static size_t turn;
    char *start = texts[turn++ % COUNT(texts)], *end = start;
    for (; *pattern; pattern++) {
        if (*pattern == '$')
            end += sprintf(end, "%s/tests/fixtures/", root);
        else if (*pattern == '@')
            end += sprintf(end, "%s/", work);
        else
            *end++ = *pattern == '\'' ? '"' : *pattern;
    }
    *end = '\0';
    return start;
}

#define PATH(path) "{'path':'" path "'}"
#define TINY PATH("$tiny")
#define CONFIG(keys, models, combine) "{" keys "'models':[" models "],'combine':" combine "}"
#define TARGET_0 "{'kind':'target','model':0}"
#define ONE(model) CONFIG("", model, TARGET_0)
#define BOTH(first, second) ONE(PATH(first) "," PATH(second))
#define TWO(combine) CONFIG("", TINY "," TINY, combine)

static void *must(void *pointer, const char *what) {
    if (pointer)
        return pointer;
    perror(what);
    exit(1);
}

/* Writes a file: a text, or the first bytes of another file. */
static void write_file(const char *path, const char *content) {
    FILE *file = must(fopen(text(path), "wb"), path);
    fputs(text(content), file);
    fclose(file);
}
static void copy_file(const char *from, const char *to, size_t bytes) {
    FILE *source = must(fopen(text(from), "rb"), from), *target = must(fopen(text(to), "wb"), to);
    static char buffer[1 << 16];
    size_t count;
    while ((count = fread(buffer, 1, bytes < sizeof buffer ? bytes : sizeof buffer, source))) {
        fwrite(buffer, 1, count, target);
        bytes -= count;
    }
    fclose(source);
    fclose(target);
}
static void make_folder(const char *path) {
    if (mkdir(text(path), 0700))
        must(NULL, path);
}
static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

/* Makes a copy of the fixture tiny with one replaced file. */
static void spoil(const char *name, const char *file, const char *content) {
    static const char *files[] = {"model.onnx", "genai_config.json", "tokenizer.json"};
    char path[256], from[64];
    snprintf(path, sizeof path, "@%s", name);
    make_folder(path);
    for (size_t i = 0; i < COUNT(files); i++) {
        snprintf(path, sizeof path, "@%s/%s", name, files[i]);
        snprintf(from, sizeof from, "$tiny/%s", files[i]);
        if (strcmp(files[i], file))
            copy_file(from, path, SIZE_MAX);
        else if (content)
            write_file(path, content);
        else
            copy_file(from, path, 2000);
    }
}

/* ---- Engines and sequences ------------------------------------------------------------------------------------ */

static cos_engine *open_engine(const char *where, const char *json) {
    cos_engine *engine = NULL;
    succeeds(where, json, cos_engine_new(text(json), &engine));
    return engine;
}
#define ENGINE(json) open_engine(HERE, json)

static cos_session *open_session(const char *where, const cos_engine *engine, cos_session_options options) {
    cos_session *session = NULL;
    options.struct_size = sizeof options;
    succeeds(where, "cos_session_new", cos_session_new(engine, &options, &session));
    return session;
}
#define SESSION(engine, ...) open_session(HERE, engine, (cos_session_options){__VA_ARGS__})

static uint64_t committed(const cos_session *session) {
    cos_stats stats = {.struct_size = sizeof stats};
    return OK(cos_session_stats(session, &stats)) ? stats.tokens : UINT64_MAX;
}

/* Steps until the sequence ends or a step fails, and checks the tokens and the end. */
static cos_error *decode(const char *where, const char *what, cos_session *session, const int32_t *expected,
                         size_t count, int32_t finish) {
    char came[1024] = "", wanted[1024] = "";
    size_t length = 0, end = 0;
    cos_step_result step = {.struct_size = sizeof step};
    cos_error *error;
    uint64_t before = committed(session), total = 0;
    while (!(error = cos_step(session, &step))) {
        total += step.tokens_count;
        for (size_t i = 0; i < step.tokens_count && length < sizeof came - 16; i++)
            length += (size_t)sprintf(came + length, " %d", step.tokens[i]);
        if (step.finish || total > 2000)
            break;
    }
    for (size_t i = 0; i < count && end < sizeof wanted - 16; i++)
        end += (size_t)sprintf(wanted + end, " %d", expected[i]);
    check(where, !strcmp(came, wanted), "%s: expected the tokens%s, came%s", what, wanted, came);
    check(where, error || step.finish == finish, "%s: expected the finish %d, came %d", what, finish, step.finish);
    equal(where, what, committed(session) - before, total);
    return error;
}
/* A sequence that ends without an error. */
#define DECODES(session, finish, ...) OK(decode(HERE, #session, session, TOKENS(__VA_ARGS__), COS_FINISH_##finish))
