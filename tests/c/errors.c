/* Every error that a caller can cause, through the C interface: its code, that its message names the thing and the
 * mend, and that nothing is lost by it. (A panic cannot be caused from here; tests/boundary.rs has it.)
 *
 *     errors REPOSITORY
 */
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

#define COUNT(array) (sizeof(array) / sizeof *(array))
/* An array and, as arguments and members have it, its count. */
#define TOKENS(...) (const int32_t[]){__VA_ARGS__}, COUNT(((const int32_t[]){__VA_ARGS__}))
#define FLOATS(...) (const float[]){__VA_ARGS__}, COUNT(((const float[]){__VA_ARGS__}))

/* ---- Checks -------------------------------------------------------------------------------------------------- */

static int checks, failures;

/* Count a check; where it does not hold, print what was expected and what came. */
__attribute__((format(printf, 3, 4))) static void check(int line, bool holds, const char *format, ...) {
    checks++;
    if (holds)
        return;
    failures++;
    va_list arguments;
    va_start(arguments, format);
    printf("%s:%d: ", __FILE__, line);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

static void equal(int line, const char *what, unsigned long long came, unsigned long long expected) {
    check(line, came == expected, "%s: expected %llu, came %llu", what, expected, came);
}
#define EQUAL(came, expected) equal(__LINE__, #came, (unsigned long long)(came), (unsigned long long)(expected))

/* Everything that a call may write, and a copy to see that a failed call wrote none of it. */
struct outputs {
    cos_engine *engine;
    cos_session *session;
    cos_text_stream *stream;
    const char *text;
    size_t count;
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

/* out.step and out.stats of another size. */
static cos_step_result *sized_step(size_t size) {
    untouched.step.struct_size = out.step.struct_size = size;
    return &out.step;
}
static cos_stats *sized_stats(size_t size) {
    untouched.stats.struct_size = out.stats.struct_size = size;
    return &out.stats;
}

/* The call failed with this code, said these things, and wrote nothing. Frees the error. */
static void fails(int line, const char *call, cos_error *error, int32_t code, const char *const *says) {
    const char *message = cos_error_message(error);
    check(line, cos_error_code(error) == code, "%s: expected error %d, came %d: %s", call, code, cos_error_code(error),
          message);
    for (; error && *says; says++)
        check(line, strstr(message, *says), "%s: expected a message with \"%s\", came: %s", call, *says, message);
    check(line, !strchr(message, '\n'), "%s: expected a message of one line, came: %s", call, message);
    check(line, !memcmp(&out, &untouched, sizeof out), "%s: expected no output, but something was written", call);
    cos_error_free(error);
}
#define FAILS(call, code, ...) \
    (reset(), fails(__LINE__, #call, (call), COS_ERROR_##code, (const char *const[]){__VA_ARGS__, NULL}))

static bool succeeds(int line, const char *call, cos_error *error) {
    bool success = !error;
    check(line, success, "%s: expected success, came error %d: %s", call, cos_error_code(error),
          cos_error_message(error));
    cos_error_free(error);
    return success;
}
#define OK(call) succeeds(__LINE__, #call, (call))

/* ---- Files and configurations --------------------------------------------------------------------------------- */

static const char *root;
static const char *work; /* a new folder in the working directory */

/* A text with ' for ", $ for the folder of fixtures, @ for the working folder; valid until the next but three. */
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

/* Write a file: a text, or the first bytes of another file. */
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

/* A copy of the fixture tiny with one of its files replaced. */
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

static cos_engine *open_engine(int line, const char *json) {
    cos_engine *engine = NULL;
    succeeds(line, json, cos_engine_new(text(json), &engine));
    return engine;
}
#define ENGINE(json) open_engine(__LINE__, json)

static cos_session *open_session(int line, const cos_engine *engine, cos_session_options options) {
    cos_session *session = NULL;
    options.struct_size = sizeof options;
    succeeds(line, "cos_session_new", cos_session_new(engine, &options, &session));
    return session;
}
#define SESSION(engine, ...) open_session(__LINE__, engine, (cos_session_options){__VA_ARGS__})

static uint64_t committed(const cos_session *session) {
    cos_stats stats = {.struct_size = sizeof stats};
    return OK(cos_session_stats(session, &stats)) ? stats.tokens : UINT64_MAX;
}

/* Step until the sequence ends or a step fails: these tokens came, and this end. */
static cos_error *decode(int line, const char *what, cos_session *session, const int32_t *expected, size_t count,
                         int32_t finish) {
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
    check(line, !strcmp(came, wanted), "%s: expected the tokens%s, came%s", what, wanted, came);
    check(line, error || step.finish == finish, "%s: expected the finish %d, came %d", what, finish, step.finish);
    equal(line, what, committed(session) - before, total);
    return error;
}
/* A whole sequence that ends well. */
#define DECODES(session, finish, ...) OK(decode(__LINE__, #session, session, TOKENS(__VA_ARGS__), COS_FINISH_##finish))

/* ---- ONNX Runtime --------------------------------------------------------------------------------------------- */

/* Compile a library; what it is made from is in @library.c. */
static void compile(const char *name, const char *flags) {
    char command[3 * PATH_MAX];
    const char *compiler = getenv("CC");
    snprintf(command, sizeof command, "%s -shared -fPIC %s -o '%s/%s' '%s/library.c'",
             compiler && *compiler ? compiler : "cc", flags, work, name, work);
    EQUAL(system(command), 0);
}

/* Before any engine: each of these fails, and none spoils the process for the next. */
static void runtime(void) {
    const char *variable = getenv("ORT_DYLIB_PATH"), *good = text(ONE(TINY));
    char *saved = variable ? strdup(variable) : NULL;

    setenv("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so", 1);
    FAILS(cos_engine_new(good, &out.engine), RUNTIME, "ORT_DYLIB_PATH names /nowhere/libonnxruntime.so",
          "name the library");
    /* Before any library is looked for. */
    FAILS(cos_engine_new(text(CONFIG("'threads':4294967297,", TINY, TARGET_0)), &out.engine), CONFIG, "threads",
          "4294967297");
    setenv("ORT_DYLIB_PATH", work, 1);
    FAILS(cos_engine_new(good, &out.engine), RUNTIME, "ORT_DYLIB_PATH", work);
    unsetenv("ORT_DYLIB_PATH");

    write_file("@text.so", "This is no library, but a text that is long enough to be taken for the header of one.");
    write_file("@library.c", "int nothing;\n");
    compile("other.so", "");
    write_file("@library.c",
        "static const void *api(unsigned version) { (void)version; return 0; }\n"
        "static const char *version(void) { return VERSION; }\n"
        "static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};\n"
        "const void *OrtGetApiBase(void) { return &base; }\n");
    compile("ancient.so", "-DVERSION='\"1.10.0\"'");
    compile("old.so", "-DVERSION='\"1.23.2\"'");
#define WITH(library) text(CONFIG("'onnxruntime':'" library "',", TINY, TARGET_0))
    FAILS(cos_engine_new(WITH("@missing.so"), &out.engine), RUNTIME, "onnxruntime", work, "missing.so",
          "name the library");
    FAILS(cos_engine_new(WITH("@text.so"), &out.engine), RUNTIME, work, "text.so", "ELF", "1.24 or newer is needed");
    FAILS(cos_engine_new(WITH("@other.so"), &out.engine), RUNTIME, work, "other.so", "OrtGetApiBase", "1.24");
    FAILS(cos_engine_new(WITH("@ancient.so"), &out.engine), RUNTIME, work, "ancient.so", "1.10.0", "1.24");
    FAILS(cos_engine_new(WITH("@old.so"), &out.engine), RUNTIME, work, "old.so", "1.23.2", "1.24");
    /* The variable comes first, also where it is wrong. */
    setenv("ORT_DYLIB_PATH", text("@ancient.so"), 1);
    FAILS(cos_engine_new(WITH("@old.so"), &out.engine), RUNTIME, "ancient.so", "1.10.0");
    unsetenv("ORT_DYLIB_PATH");

    /* A copy of this library that has no ONNX Runtime in any folder around it, unless the system has one. */
    if (!dlopen("libonnxruntime.so.1", RTLD_LAZY) && !dlopen("libonnxruntime.so", RTLD_LAZY)) {
        cos_error *(*open)(const char *, cos_engine **) = cos_engine_new;
        Dl_info info;
        void *symbol;
        memcpy(&symbol, &open, sizeof symbol);
        EQUAL(dladdr(symbol, &info) != 0, true);
        make_folder("@a"), make_folder("@a/b"), make_folder("@a/b/c"), make_folder("@a/b/c/d");
        copy_file(info.dli_fname, "@a/b/c/d/libcos.so", SIZE_MAX);
        void *copy = must(dlopen(text("@a/b/c/d/libcos.so"), RTLD_NOW | RTLD_LOCAL), "dlopen");
        *(void **)&open = must(dlsym(copy, "cos_engine_new"), "dlsym");
        FAILS(open(text(ONE(TINY)), &out.engine), RUNTIME, "libonnxruntime.so was not found", "a/b/c/d/libcos.so",
              "ORT_DYLIB_PATH", "\"onnxruntime\"");
    } else {
        printf("not tested: no ONNX Runtime at all, because the system has one\n");
    }

    if (saved)
        setenv("ORT_DYLIB_PATH", saved, 1);
    free(saved);
    /* A good library after all of these; from here on the pool has one thread. */
    cos_engine *engine = ENGINE(CONFIG("'threads':1,", TINY, TARGET_0));
    cos_session *session = SESSION(engine, 0);
    OK(cos_prompt(session, TOKENS(13)));
    DECODES(session, STOP, 14, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Configurations and models -------------------------------------------------------------------------------- */

#define C COS_ERROR_CONFIG
#define M COS_ERROR_MODEL
static const struct {
    int line;
    const char *json;
    int32_t code;
    const char *says[6];
} CONFIGURATIONS[] = {
    {__LINE__, "", C, {"EOF"}},
    {__LINE__, "{'models':[", C, {"EOF", "line 1"}},
    {__LINE__, "engine.json", C, {"line 1 column 1"}},
    {__LINE__, "[]", C, {"expected"}},
    {__LINE__, "{'combine':{'kind':'target','model':0}}", C, {"models"}},
    {__LINE__, "{'models':[{'path':'$tiny'}]}", C, {"combine"}},
    {__LINE__, ONE(""), C, {"models is empty"}},
    {__LINE__, ONE("{}"), C, {"path"}},
    /* Keys that do not exist, and the ones that do. */
    {__LINE__, "{'thread':1}", C, {"thread", "threads"}},
    {__LINE__, ONE("{'path':'$tiny','prvider':'cpu'}"), C, {"prvider", "provider"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[0.5,0.5],'mu':0.1}"), C, {"mu", "weights"}},
    {__LINE__, TWO("{'kind':'contrastive','mu':0.1,'alpha':0.1}"), C, {"alpha", "plausibility"}},
    {__LINE__, TWO("{'kind':'logits','weights':[1,1],'bias':0}"), C, {"bias", "weights"}},
    {__LINE__, TWO("{'kind':'target','model':0,'draft':1}"), C, {"draft", "model"}},
    {__LINE__, TWO("{'weights':[0.5,0.5]}"), C, {"kind"}},
    {__LINE__, TWO("{'kind':'average'}"), C, {"average", "weighted", "contrastive", "logits", "target"}},
    {__LINE__, TWO("{'kind':'weighted'}"), C, {"weights"}},
    {__LINE__, TWO("{'kind':'contrastive'}"), C, {"mu"}},
    {__LINE__, TWO("{'kind':'target'}"), C, {"model"}},
    /* Values. */
    {__LINE__, ONE("{'path':'$tiny','provider':'tpu'}"), C, {"tpu", "cpu", "cuda"}},
    {__LINE__, ONE("{'path':'$tiny','device_id':-1}"), C, {"device_id", "-1", "0 or positive"}},
    {__LINE__, "{'threads':-1}", C, {"-1"}},
    {__LINE__, "{'threads':'all'}", C, {"all"}},
    {__LINE__, "{'threads':1,'threads':1}", C, {"duplicate", "threads"}},
    {__LINE__, CONFIG("'threads':2,", TINY, TARGET_0), C, {"threads is 2", "made with 1", "same number"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[1]}"), C, {"1 weight", "2 models", "one weight for each model"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[0.5,0.25,0.25]}"), C, {"3 weights", "2 models"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[]}"), C, {"0 weights", "2 models"}},
    {__LINE__, TWO("{'kind':'logits','weights':[1]}"), C, {"1 weight", "2 models"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[1.5,-0.5]}"), C, {"weights[1] is -0.5", "0 or positive"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[0.5,0.6]}"), C, {"sum to 1.1", "sum to 1"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[0,0]}"), C, {"sum to 0", "sum to 1"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[1e39,0]}"), C, {"weights[0] is inf"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[1e999,0]}"), C, {"out of range"}},
    {__LINE__, TWO("{'kind':'weighted','weights':[NaN,1]}"), C, {"line 1"}},
    {__LINE__, TWO("{'kind':'logits','weights':[0,0]}"), C, {"weights", "0", "at least one"}},
    {__LINE__, TWO("{'kind':'logits','weights':[-1e39,1]}"), C, {"weights[0] is -inf", "finite"}},
    {__LINE__, TWO("{'kind':'contrastive','mu':-0.1}"), C, {"mu", "-0.1", "0 or positive"}},
    {__LINE__, TWO("{'kind':'contrastive','mu':0.1,'plausibility':1.5}"), C, {"plausibility", "1.5", "between 0"}},
    {__LINE__, CONFIG("", TINY, "{'kind':'contrastive','mu':0.1}"), C, {"amateur", "1 model"}},
    {__LINE__, TWO("{'kind':'target','model':2}"), C, {"model 2", "2 models"}},
    {__LINE__, TWO("{'kind':'target','model':-1}"), C, {"-1"}},
    /* Look-ups, which only draft. */
    {__LINE__, ONE(TINY ",{'kind':'ngram','path':'$tiny'}"), C, {"ngram", "`path`", "`name`"}},
    {__LINE__, ONE(TINY ",{'kind':'ngram','provider':'cpu'}"), C, {"ngram", "`provider`", "`name`"}},
    {__LINE__, ONE(TINY ",{'kind':'ngram','device_id':0}"), C, {"ngram", "`device_id`", "`name`"}},
    {__LINE__, ONE(TINY ",{'kind':'ngram','length':3}"), C, {"length", "name"}},
    {__LINE__, ONE(TINY ",{'kind':'bigram'}"), C, {"bigram", "onnx", "ngram"}},
    {__LINE__, ONE("{'kind':'onnx'}"), C, {"path"}},
    {__LINE__, ONE("{'kind':'ngram'}"), C, {"look-ups", "at least one"}},
    {__LINE__, CONFIG("", "{'kind':'ngram'}," TINY, TARGET_0), C, {"target model 0 is a look-up", "another one"}},
    {__LINE__, CONFIG("", TINY ",{'kind':'ngram'}", "{'kind':'weighted','weights':[0.5,0.5]}"), C,
     {"weights[1] is 0.5", "look-up", "must be 0"}},
    {__LINE__, CONFIG("", TINY ",{'kind':'ngram'}", "{'kind':'contrastive','mu':0.1}"), C,
     {"model 1 is the amateur", "look-up", "first"}},
    /* Files that are missing or corrupt. */
    {__LINE__, ONE(PATH("$none")), M, {"fixtures/none", "does not exist", ".onnx"}},
    {__LINE__, ONE(PATH("$tiny/none.onnx")), M, {"tiny/none.onnx", "does not exist"}},
    {__LINE__, ONE(PATH("$ti\\u0000ny")), M, {"fixtures/ti", "does not exist"}},
    {__LINE__, ONE(PATH("")), M, {"does not exist"}},
    {__LINE__, ONE(PATH("@empty")), M, {"/empty", "no .onnx file"}},
    {__LINE__, ONE(PATH("@several")), M, {"/several", "holds a.onnx, b.onnx", "name one"}},
    {__LINE__, ONE(PATH("@truncated")), M, {"truncated/model.onnx", "Protobuf"}},
    {__LINE__, ONE(PATH("@hollow")), M, {"hollow/model.onnx"}},
    {__LINE__, ONE(PATH("@prose")), M, {"prose/model.onnx"}},
    {__LINE__, ONE(PATH("$tiny/tokenizer.json")), M, {"tiny/tokenizer.json"}},
    {__LINE__, ONE(PATH("$external")), M, {"external/model.onnx", "model.onnx.data"}},
    {__LINE__, ONE(PATH("@genai")), M, {"genai/genai_config.json", "not JSON"}},
    {__LINE__, ONE(PATH("@tokenizer")), M, {"tokenizer/tokenizer.json"}},
    {__LINE__, BOTH("$tiny", "@tokenizer"), M, {"tokenizer/tokenizer.json"}},
    {__LINE__, ONE(PATH("@silent")), M, {"silent/tokenizer.json", "no tokens"}},
    {__LINE__, ONE(PATH("@bytes")), M, {"bytes/tokenizer.json", "\"x\", the continuing_subword_prefix"}},
    /* Models that are none, or not of this kind. */
    {__LINE__, ONE(PATH("$vision")), M, {"vision/model.onnx", "not a language model", "input_ids", "pixel_values"}},
    {__LINE__, ONE(PATH("$headless")), M,
     {"headless/model.onnx", "not a language model", "logits", "last_hidden_state", "its inputs are input_ids"}},
    /* Models that do not fit together. */
    {__LINE__, BOTH("$tiny", "$wide"), M, {"token 16 ", "missing to tiny", "\"p\" to wide", "one vocabulary"}},
    {__LINE__, BOTH("$wide", "$tiny"), M, {"token 16 ", "\"p\" to wide", "missing to tiny"}},
    {__LINE__, BOTH("$notoken", "$wide"), M,
     {"wide has 24 tokens", "notoken has 16", "notoken came without a tokenizer.json", "one vocabulary"}},
    {__LINE__, BOTH("$tiny", "$renamed"), M, {"token 7 ", "\"g\" to tiny", "\"other\" to renamed", "one vocabulary"}},
    {__LINE__, ONE("{'path':'$tiny','name':'A'}," TINY ",{'path':'$renamed/model.onnx','name':'B'}"), M,
     {"token 7 ", "\"g\" to A", "\"other\" to B"}},
    {__LINE__, ONE("{'path':'$tiny','provider':'cuda'}"), COS_ERROR_RUNTIME,
     {"cuda", "tiny", "libonnxruntime_providers_cuda.so", "onnxruntime-gpu", "\"cpu\""}},
};

static void described(cos_engine *engine, const char *says) {
    const char *json = NULL, *again = NULL, *table = NULL;
    OK(cos_engine_describe(engine, &json));
    EQUAL(json && strstr(json, says), true);
    OK(cos_engine_describe(engine, &again));
    EQUAL(again == json, true);
    OK(cos_engine_describe_table(engine, &table));
    EQUAL(table && strstr(table, "context length"), true);
    cos_engine_free(engine);
}

/* A tokenizer.json with this vocabulary. */
#define TOKENIZER(vocabulary)                                                                                          \
    "{'version':'1.0','added_tokens':[],'pre_tokenizer':{'type':'Whitespace'},"                                        \
    "'model':{'type':'WordLevel','vocab':{" vocabulary "},'unk_token':'?'}}"

static void configurations(void) {
    make_folder("@empty"), make_folder("@several");
    write_file("@several/a.onnx", ""), write_file("@several/b.onnx", "");
    spoil("truncated", "model.onnx", NULL);
    spoil("hollow", "model.onnx", "");
    spoil("prose", "model.onnx", "This is no graph at all, but prose.");
    spoil("genai", "genai_config.json", "{'model':");
    spoil("unbounded", "genai_config.json", "{'search':{'past_present_share_buffer':true}}");
    spoil("zero", "genai_config.json", "{'model':{'context_length':0},'search':{'past_present_share_buffer':true}}");
    spoil("tokenizer", "tokenizer.json", "{'version':'1.0'}");
    spoil("silent", "tokenizer.json", TOKENIZER(""));
    spoil("bytes", "tokenizer.json",
          "{'version':'1.0','model':{'type':'BPE','vocab':{'a':1,'\u00e9':4,'a\u00e9':5},'merges':[['a','\u00e9']],"
          "'continuing_subword_prefix':'x'}}");
    for (size_t i = 0; i < COUNT(CONFIGURATIONS); i++) {
        reset();
        fails(CONFIGURATIONS[i].line, CONFIGURATIONS[i].json, cos_engine_new(text(CONFIGURATIONS[i].json), &out.engine),
              CONFIGURATIONS[i].code, CONFIGURATIONS[i].says);
    }

    /* What a configuration does not say, the graph does: the rotary table has 32 rows. */
    described(ENGINE(ONE(PATH("@unbounded"))), "\"context_length\":32");
    described(ENGINE(ONE(PATH("@zero"))), "\"context_length\":32");
    described(ENGINE(ONE("{'path':'$tiny','context_length':20}")), "\"context_length\":20");
    /* Each token attends to the mean of all, dead ones and later ones too. One by one that is causal. */
    described(ENGINE(ONE(PATH("$optimum"))), "\"rollback\":\"compact\"");
    described(ENGINE(ONE(PATH("$optimum"))), "\"scoring\":\"one_by_one\"");

    /* What is assumed of a tokenizer, and what it does not do. */
    described(ENGINE(BOTH("$notoken", "$tiny")), "notoken came without a tokenizer.json");
    described(ENGINE(BOTH("$notoken", "$notoken")), "notoken came without a tokenizer.json");
    spoil("longer", "tokenizer.json", TOKENIZER("'a':0,'z':4294967294"));
    spoil("equal", "tokenizer.json", TOKENIZER("'a':0, 'z':4294967294"));
    described(ENGINE(BOTH("@longer", "@equal")), "has 4294967295 tokens, but its logits only 16 columns");
    spoil("start", "model.onnx.data", "");
    write_file("@start/tokenizer_config.json", "{'add_bos_token':true,'bos_token':{'content':'<eos>'}}");
    described(ENGINE(ONE(PATH("@start"))), "asks for the start token \\\"<eos>\\\" (add_bos_token)");

    FAILS(cos_engine_new("{\"models\": \"\xff\"}", &out.engine), INVALID_ARGUMENT, "config_json", "UTF-8");
    FAILS(cos_engine_open("\xff.json", &out.engine), INVALID_ARGUMENT, "config_path", "UTF-8");
    FAILS(cos_engine_open(text("@none.json"), &out.engine), CONFIG, "cannot read", "/none.json");
    FAILS(cos_engine_open("", &out.engine), CONFIG, "cannot read");
    FAILS(cos_engine_open(work, &out.engine), CONFIG, "cannot read", work);
    write_file("@cut.json", "{\n 'models': [{'path': 'tiny'},\n");
    FAILS(cos_engine_open(text("@cut.json"), &out.engine), CONFIG, "/cut.json", "line");
    write_file("@latin.json", "{'models': '\xe4'}");
    FAILS(cos_engine_open(text("@latin.json"), &out.engine), CONFIG, "/latin.json", "UTF-8");
    write_file("@weights.json", TWO("{'kind':'weighted','weights':[2,-1]}"));
    FAILS(cos_engine_open(text("@weights.json"), &out.engine), CONFIG, "/weights.json", "weights[1] is -1");
    write_file("@relative.json", ONE(PATH("truncated")));
    FAILS(cos_engine_open(text("@relative.json"), &out.engine), MODEL, work, "/truncated/model.onnx");
}

/* ---- NULL, and counts without an array ------------------------------------------------------------------------ */

static void nulls(void) {
    const char *good = text(ONE(TINY));
    const int32_t token = 1;
    FAILS(cos_engine_open(NULL, &out.engine), INVALID_ARGUMENT, "config_path is NULL");
    FAILS(cos_engine_open(good, NULL), INVALID_ARGUMENT, "out_engine is NULL");
    FAILS(cos_engine_new(NULL, &out.engine), INVALID_ARGUMENT, "config_json is NULL");
    FAILS(cos_engine_new(good, NULL), INVALID_ARGUMENT, "out_engine is NULL");

    cos_engine *engine = ENGINE(ONE(TINY));
    EQUAL(cos_engine_vocab_size(engine), 16);
    EQUAL(cos_engine_model_count(engine), 1);
    EQUAL(cos_engine_vocab_size(NULL), 0);
    EQUAL(cos_engine_model_count(NULL), 0);
    const char *untouched = "untouched";
    FAILS(cos_engine_describe(NULL, &untouched), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_describe(engine, NULL), INVALID_ARGUMENT, "out_json is NULL");
    FAILS(cos_engine_describe_table(NULL, &untouched), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_describe_table(engine, NULL), INVALID_ARGUMENT, "out_table is NULL");
    FAILS(cos_session_describe(NULL, &untouched), INVALID_ARGUMENT, "session is NULL");
    EQUAL(strcmp(untouched, "untouched"), 0);
    FAILS(cos_session_new(NULL, NULL, &out.session), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_session_new(engine, NULL, NULL), INVALID_ARGUMENT, "out_session is NULL");

    cos_session *session = NULL;
    OK(cos_session_new(engine, NULL, &session));
    FAILS(cos_prompt(NULL, &token, 1), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_prompt(session, NULL, 1), INVALID_ARGUMENT, "tokens is NULL", "tokens_count is 1");
    FAILS(cos_prompt(session, NULL, 0), INVALID_ARGUMENT, "prompt is empty", "at least one token");
    FAILS(cos_prompt(session, &token, 0), INVALID_ARGUMENT, "prompt is empty", "at least one token");
    FAILS(cos_prompt(session, NULL, SIZE_MAX), CONTEXT_FULL, "tokens_count is 18446744073709551615", "32");
    FAILS(cos_step(session, &out.step), INVALID_ARGUMENT, "no tokens", "prompt");
    EQUAL(committed(session), 0);
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_step(NULL, &out.step), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_step(session, NULL), INVALID_ARGUMENT, "out_result is NULL");
    FAILS(cos_cancel(NULL), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_stats(NULL, &out.stats), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_stats(session, NULL), INVALID_ARGUMENT, "out_stats is NULL");
    FAILS(cos_engine_stats(NULL, &out.stats), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_stats(engine, NULL), INVALID_ARGUMENT, "out_stats is NULL");
    DECODES(session, STOP, 13, 14, 15, 0);

    FAILS(cos_engine_encode(NULL, "a", 1, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_encode(engine, NULL, 1, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "text is NULL");
    FAILS(cos_engine_encode(engine, "a", SIZE_MAX, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT,
          "text_bytes is 18446744073709551615");
    FAILS(cos_engine_encode(engine, "a", 1, 0, NULL, 8, &out.count), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_engine_encode(engine, "a", 1, 0, out.tokens, 8, NULL), INVALID_ARGUMENT, "out_count is NULL");
    FAILS(cos_engine_decode(NULL, &token, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_decode(engine, NULL, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_engine_decode(engine, &token, SIZE_MAX, out.chars, 8, &out.count), INVALID_ARGUMENT,
          "tokens_count is 18446744073709551615");
    FAILS(cos_engine_decode(engine, &token, 1, NULL, 8, &out.count), INVALID_ARGUMENT, "text is NULL");
    FAILS(cos_engine_decode(engine, &token, 1, out.chars, 8, NULL), INVALID_ARGUMENT, "out_bytes is NULL");
    OK(cos_engine_encode(engine, NULL, 0, 0, NULL, 0, &out.count));
    EQUAL(out.count, 0);
    OK(cos_engine_decode(engine, NULL, 0, NULL, 0, &out.count));
    EQUAL(out.count, 0);

    cos_text_stream *stream = NULL;
    FAILS(cos_text_stream_new(NULL, &out.stream), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_text_stream_new(engine, NULL), INVALID_ARGUMENT, "out_stream is NULL");
    OK(cos_text_stream_new(engine, &stream));
    FAILS(cos_text_stream_push(NULL, &token, 1, &out.text, &out.count), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_push(stream, NULL, 1, &out.text, &out.count), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_text_stream_push(stream, &token, SIZE_MAX, &out.text, &out.count), INVALID_ARGUMENT, "tokens_count");
    FAILS(cos_text_stream_push(stream, &token, 1, NULL, &out.count), INVALID_ARGUMENT, "out_text is NULL");
    FAILS(cos_text_stream_push(stream, &token, 1, &out.text, NULL), INVALID_ARGUMENT, "out_bytes is NULL");
    FAILS(cos_text_stream_prompt(NULL, &token, 1), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_prompt(stream, NULL, 1), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_text_stream_prompt(stream, &token, SIZE_MAX), INVALID_ARGUMENT, "tokens_count");
    const char *stops[] = {"a", NULL};
    const size_t stops_bytes[] = {1, 1};
    FAILS(cos_text_stream_set_stops(NULL, stops, stops_bytes, 1), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_set_stops(stream, NULL, stops_bytes, 1), INVALID_ARGUMENT, "stops is NULL");
    FAILS(cos_text_stream_set_stops(stream, stops, NULL, 1), INVALID_ARGUMENT, "stops_bytes is NULL");
    FAILS(cos_text_stream_set_stops(stream, stops, stops_bytes, SIZE_MAX), INVALID_ARGUMENT, "stops_count");
    FAILS(cos_text_stream_set_stops(stream, stops, stops_bytes, 2), INVALID_ARGUMENT, "stop string is NULL");
    FAILS(cos_text_stream_finish(NULL, &out.text, &out.count), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_finish(stream, NULL, &out.count), INVALID_ARGUMENT, "out_text is NULL");
    FAILS(cos_text_stream_finish(stream, &out.text, NULL), INVALID_ARGUMENT, "out_bytes is NULL");
    OK(cos_text_stream_push(stream, NULL, 0, &out.text, &out.count));
    EQUAL(out.count, 0); /* no token was taken by any of these */

    EQUAL(cos_error_code(NULL), 0);
    EQUAL(strlen(cos_error_message(NULL)), 0);
    cos_error_free(NULL);
    cos_free(NULL);
    cos_text_stream_free(NULL);
    cos_engine_free(NULL);
    cos_text_stream_free(stream);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Sizes of structs ----------------------------------------------------------------------------------------- */

static void sizes(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    cos_session *session = SESSION(engine, 0);
    OK(cos_prompt(session, TOKENS(12)));
    /* Never set, too small, one below version 0.1's, garbage. */
    const size_t steps[] = {0, 8, 31, INT_MAX, SIZE_MAX}, stats[] = {0, 8, 79, INT_MAX, SIZE_MAX},
                 options[] = {0, 8, 95, INT_MAX, SIZE_MAX};
    for (size_t i = 0; i < COUNT(steps); i++) {
        char number[32];
        snprintf(number, sizeof number, " is %zu;", steps[i]);
        FAILS(cos_step(session, sized_step(steps[i])), INVALID_ARGUMENT, "struct_size", number,
              "sizeof(cos_step_result)");
        snprintf(number, sizeof number, " is %zu;", stats[i]);
        FAILS(cos_session_stats(session, sized_stats(stats[i])), INVALID_ARGUMENT, "struct_size", number,
              "sizeof(cos_stats)");
        snprintf(number, sizeof number, " is %zu;", options[i]);
        FAILS(cos_session_new(engine, &(cos_session_options){.struct_size = options[i]}, &out.session),
              INVALID_ARGUMENT, "struct_size", number, "sizeof(cos_session_options)");
    }

    /* A caller of version 0.1 ... */
    cos_session *other = NULL;
    OK(cos_session_new(engine, &(cos_session_options){.struct_size = 96, .targets = 77}, &other));
    cos_free(other);
    reset();
    OK(cos_session_stats(session, sized_stats(80)));
    EQUAL(out.stats.tokens, 0);
    EQUAL(out.stats.near_ties, untouched.stats.near_ties);
    EQUAL(out.stats.struct_size, 80);

    /* ... and one of a later version. */
    struct {
        cos_session_options known;
        char unknown[24];
    } later = {.known.struct_size = sizeof later};
    OK(cos_session_new(engine, &later.known, &other));
    cos_free(other);
    later.unknown[sizeof later.unknown - 1] = 1;
    FAILS(cos_session_new(engine, &later.known, &out.session), UNSUPPORTED, "cos_session_options", "leave them 0");
    reset();
    OK(cos_session_stats(session, sized_stats(sizeof(cos_stats) + 8)));
    EQUAL(out.stats.struct_size, sizeof(cos_stats) + 8);
    EQUAL(!memcmp(out.beyond + 8, untouched.beyond + 8, sizeof out.beyond - 8), true);

    DECODES(session, STOP, 13, 14, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Options of a session ------------------------------------------------------------------------------------- */

enum { WEIGHTED, CONTRASTIVE, LOGITS, TARGET };
static const char *const KINDS[] = {
    TWO("{'kind':'weighted','weights':[0.5,0.5]}"),
    TWO("{'kind':'contrastive','mu':0.1}"),
    TWO("{'kind':'logits','weights':[1,1]}"),
    TWO("{'kind':'target','model':0}"),
};
static const float HALVES[] = {0.5f, 0.5f, 0.5f};
static const int32_t ONES[] = {1, 1, 1};

/* What the function of a session is to do, and what came of calling its session back. */
struct spoilt {
    int32_t status;
    float score; /* of token 0; the others get their model's logits */
    bool lazy;   /* the last score is left out */
    cos_session *session;
    int32_t codes[3];
};

static int32_t code_of(cos_error *error) {
    int32_t code = cos_error_code(error);
    cos_error_free(error);
    return code;
}

static int32_t spoilt(const float *const *rows, size_t models_count, size_t vocab_size, float *out_scores,
                      void *user_data) {
    struct spoilt *data = user_data;
    if (data->session) {
        cos_stats stats = {.struct_size = sizeof stats};
        data->codes[0] = code_of(cos_prompt(data->session, TOKENS(1)));
        data->codes[1] = code_of(cos_session_set_weights(data->session, FLOATS(1, 0)));
        data->codes[2] = code_of(cos_session_stats(data->session, &stats));
    }
    memcpy(out_scores, rows[models_count - 1], (vocab_size - data->lazy) * sizeof *out_scores);
    out_scores[0] += data->score;
    return data->status;
}

static void functions(void) {
    cos_engine *engine = ENGINE(KINDS[LOGITS]);
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        struct spoilt data = {.status = INT32_MIN};
        cos_session *session = SESSION(engine, .strategy = strategy, .combine = spoilt, .combine_data = &data);
        OK(cos_prompt(session, TOKENS(12)));
        FAILS(cos_step(session, &out.step), CALLBACK, "combine function", "-2147483648");
        data = (struct spoilt){.status = 1};
        FAILS(cos_step(session, &out.step), CALLBACK, "returned 1,");
        data = (struct spoilt){.score = NAN};
        FAILS(cos_step(session, &out.step), NUMERIC, "the combination", "NaN");
        data = (struct spoilt){.score = INFINITY};
        FAILS(cos_step(session, &out.step), NUMERIC, "the combination", "infinity");
        data = (struct spoilt){.lazy = true};
        FAILS(cos_step(session, &out.step), NUMERIC, "the combination", "NaN");
        FAILS(cos_session_set_weights(session, FLOATS(1, 0)), INVALID_ARGUMENT, "combine function", "data");
        EQUAL(committed(session), 0);
        data = (struct spoilt){.session = session};
        DECODES(session, STOP, 13, 14, 15, 0); /* as if nothing had been */
        EQUAL(data.codes[0], COS_ERROR_BUSY);
        EQUAL(data.codes[1], COS_ERROR_BUSY);
        EQUAL(data.codes[2], 0);
        cos_free(session);
    }
    cos_engine_free(engine);
}

static void set_weights(void) {
    cos_engine *engine = ENGINE(KINDS[WEIGHTED]);
    cos_session *session = SESSION(engine, 0);
    OK(cos_session_set_weights(session, FLOATS(0.25f, 0.75f))); /* before the first prompt, too */
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_session_set_weights(NULL, HALVES, 2), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_set_weights(session, NULL, 2), INVALID_ARGUMENT, "weights is NULL", "weights_count is 2");
    FAILS(cos_session_set_weights(session, NULL, 0), INVALID_ARGUMENT, "weights_count is 0", "2 models");
    FAILS(cos_session_set_weights(session, HALVES, 1), INVALID_ARGUMENT, "weights_count is 1", "2 models");
    FAILS(cos_session_set_weights(session, HALVES, 3), INVALID_ARGUMENT, "weights_count is 3", "2 models");
    FAILS(cos_session_set_weights(session, HALVES, SIZE_MAX), INVALID_ARGUMENT, "weights_count", "2 models");
    FAILS(cos_session_set_weights(session, FLOATS(NAN, 1)), INVALID_ARGUMENT, "weights[0] is NaN", "positive");
    FAILS(cos_session_set_weights(session, FLOATS(1.5f, -0.5f)), INVALID_ARGUMENT, "weights[1] is -0.5");
    FAILS(cos_session_set_weights(session, FLOATS(0.5f, 0.625f)), INVALID_ARGUMENT, "sum to 1.125");
    OK(cos_session_set_weights(session, FLOATS(0, 1)));
    DECODES(session, STOP, 13, 14, 15, 0);
    OK(cos_session_set_weights(session, FLOATS(1, 0))); /* a finished one stays finished */
    OK(cos_step(session, &out.step));
    EQUAL(out.step.finish, COS_FINISH_STOP);
    cos_free(session);
    cos_engine_free(engine);
    for (int kind = CONTRASTIVE; kind <= TARGET; kind++) {
        engine = ENGINE(KINDS[kind]);
        session = SESSION(engine, 0);
        if (kind == LOGITS)
            FAILS(cos_session_set_weights(session, FLOATS(0, 0)), INVALID_ARGUMENT, "weights", "at least one");
        else
            FAILS(cos_session_set_weights(session, HALVES, 2), INVALID_ARGUMENT, "only weighted and logits");
        cos_free(session);
        cos_engine_free(engine);
    }
}

static void options(void) {
    const struct {
        int line, kind;
        cos_session_options options;
        const char *says[4];
    } rows[] = {
        {__LINE__, WEIGHTED, {.strategy = -1}, {"strategy is -1", "0 to 3"}},
        {__LINE__, WEIGHTED, {.strategy = 4}, {"strategy is 4", "0 to 3"}},
        {__LINE__, WEIGHTED, {.targets = -1}, {"targets is -1", "0 to 2"}},
        {__LINE__, WEIGHTED, {.targets = 3}, {"targets is 3", "0 to 2"}},
        {__LINE__, WEIGHTED, {.temperature = NAN}, {"temperature is NaN", "positive"}},
        {__LINE__, WEIGHTED, {.temperature = -0.5f}, {"temperature is -0.5", "positive"}},
        {__LINE__, WEIGHTED, {.temperature = INFINITY}, {"temperature is inf"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .top_k = -1}, {"top_k is -1", "0 (off)"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .top_p = NAN}, {"top_p is NaN", "between 0 and 1"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .top_p = -0.5f}, {"top_p is -0.5", "between 0 and 1"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .top_p = 1.5f}, {"top_p is 1.5", "between 0 and 1"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .min_p = NAN}, {"min_p is NaN", "between 0 and 1"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .min_p = -0.5f}, {"min_p is -0.5", "between 0 and 1"}},
        {__LINE__, WEIGHTED, {.temperature = 1, .min_p = 1.5f}, {"min_p is 1.5", "between 0 and 1"}},
        {__LINE__, WEIGHTED, {.top_k = -1, .top_p = NAN}, {"is"}}, /* greedy does not excuse them */
        /* Arrays, each followed by its count: how many, then which values. */
        {__LINE__, WEIGHTED, {.proposal_lengths = TOKENS(1)}, {"proposal_lengths_count is 1", "2 models"}},
        {__LINE__, WEIGHTED, {.proposal_lengths = TOKENS(1, 1, 1)}, {"proposal_lengths_count is 3", "2 models"}},
        {__LINE__, WEIGHTED, {.proposal_lengths = ONES}, {"proposal_lengths_count is 0", "2 models"}},
        {__LINE__, WEIGHTED, {.proposal_lengths_count = 2}, {"proposal_lengths is NULL", "_count is 2"}},
        {__LINE__, WEIGHTED, {.proposal_lengths_count = SIZE_MAX}, {"proposal_lengths"}},
        {__LINE__, WEIGHTED, {.proposal_lengths = ONES, SIZE_MAX}, {"proposal_lengths_count"}},
        {__LINE__, WEIGHTED, {.proposal_lengths = ONES, SIZE_MAX / 16}, {"proposal_lengths_count"}},
        {__LINE__, WEIGHTED, {.proposal_lengths = TOKENS(1, -1)}, {"proposal_lengths[1] is -1", "64"}},
        {__LINE__, WEIGHTED, {.proposal_lengths = TOKENS(65, 1)}, {"proposal_lengths[0] is 65", "64"}},
        {__LINE__, WEIGHTED, {.weights = HALVES, 1}, {"weights", "1", "2 models"}},
        {__LINE__, WEIGHTED, {.weights = HALVES, 3}, {"weights", "3", "2 models"}},
        {__LINE__, WEIGHTED, {.weights = HALVES}, {"weights", "0", "2 models"}},
        {__LINE__, WEIGHTED, {.weights_count = 2}, {"weights is NULL", "weights_count is 2"}},
        {__LINE__, WEIGHTED, {.weights_count = SIZE_MAX}, {"weights"}},
        {__LINE__, WEIGHTED, {.weights = HALVES, SIZE_MAX}, {"weights"}},
        {__LINE__, WEIGHTED, {.weights = HALVES, SIZE_MAX / 16}, {"weights"}},
        {__LINE__, WEIGHTED, {.weights = FLOATS(NAN, 1)}, {"weights[0] is NaN", "positive"}},
        {__LINE__, WEIGHTED, {.weights = FLOATS(INFINITY, 0)}, {"weights[0] is inf"}},
        {__LINE__, WEIGHTED, {.weights = FLOATS(1.5f, -0.5f)}, {"weights[1] is -0.5", "positive"}},
        {__LINE__, WEIGHTED, {.weights = FLOATS(0.5f, 0.625f)}, {"sum to 1.125", "sum to 1"}},
        {__LINE__, LOGITS, {.weights = FLOATS(0, 0)}, {"weights", "at least one"}},
        {__LINE__, LOGITS, {.weights = FLOATS(1, NAN)}, {"weights[1] is NaN", "finite"}},
        {__LINE__, LOGITS, {.weights = HALVES, 3}, {"weights", "3", "2 models"}},
        {__LINE__, CONTRASTIVE, {.weights = HALVES, 2}, {"weights", "only weighted and logits"}},
        {__LINE__, TARGET, {.weights = HALVES, 2}, {"weights", "only weighted and logits"}},
        {__LINE__, WEIGHTED, {.stop_tokens = TOKENS(0, -1)}, {"stop_tokens", "-1", "0 to 15"}},
        {__LINE__, WEIGHTED, {.stop_tokens = TOKENS(16)}, {"stop_tokens", "16", "0 to 15"}},
        {__LINE__, WEIGHTED, {.stop_tokens_count = 1}, {"stop_tokens is NULL", "stop_tokens_count is 1"}},
        {__LINE__, WEIGHTED, {.stop_tokens = ONES, SIZE_MAX}, {"stop_tokens_count"}},
        /* Routed targets need a mixture that is sampled. */
        {__LINE__, WEIGHTED, {.targets = COS_TARGETS_ROUTED}, {"routed", "temperature", "combined"}},
        {__LINE__, CONTRASTIVE, {.targets = COS_TARGETS_ROUTED, .temperature = 1}, {"routed", "weighted", "combined"}},
        {__LINE__, LOGITS, {.targets = COS_TARGETS_ROUTED, .temperature = 1}, {"routed", "weighted", "combined"}},
        {__LINE__, TARGET, {.targets = COS_TARGETS_ROUTED, .temperature = 1}, {"routed", "weighted", "combined"}},
        {__LINE__, WEIGHTED, {.targets = COS_TARGETS_ROUTED, .temperature = 1, .combine = spoilt},
         {"routed", "no combine function", "combined"}},
        {__LINE__, WEIGHTED, {.targets = COS_TARGETS_ROUTED, .temperature = 1, .log_probabilities = 1},
         {"log_probabilities", "routed", "combined"}},
        {__LINE__, WEIGHTED, {.log_probabilities = 2}, {"log_probabilities is 2", "0 (off)", "1 (on)"}},
        {__LINE__, TARGET, {.log_probabilities = -1}, {"log_probabilities is -1"}},
    };
    cos_engine *engines[COUNT(KINDS)];
    for (size_t i = 0; i < COUNT(KINDS); i++)
        engines[i] = ENGINE(KINDS[i]);
    for (size_t i = 0; i < COUNT(rows); i++) {
        cos_session_options options = rows[i].options;
        options.struct_size = sizeof options;
        reset();
        fails(rows[i].line, "cos_session_new", cos_session_new(engines[rows[i].kind], &options, &out.session),
              COS_ERROR_INVALID_ARGUMENT, rows[i].says);
    }
    for (size_t i = 0; i < COUNT(KINDS); i++) { /* the engines are none the worse for it */
        cos_session *session = SESSION(engines[i], 0);
        OK(cos_prompt(session, TOKENS(13)));
        DECODES(session, STOP, 14, 15, 0);
        cos_free(session);
        cos_engine_free(engines[i]);
    }
}

/* ---- Prompts -------------------------------------------------------------------------------------------------- */

static void prompts(void) {
    static const int32_t many[40] = {1};
    cos_engine *engine = ENGINE(ONE(TINY));

    /* Tokens outside of the vocabulary: nothing is appended. */
    cos_session *session = SESSION(engine, 0);
    FAILS(cos_prompt(session, TOKENS(1, -1)), INVALID_ARGUMENT, "token 1 of the prompt is -1", "0 to 15");
    FAILS(cos_prompt(session, TOKENS(16, 1)), INVALID_ARGUMENT, "token 0 of the prompt is 16", "0 to 15");
    FAILS(cos_prompt(session, TOKENS(1, 2, INT32_MIN)), INVALID_ARGUMENT, "token 2", "-2147483648");
    FAILS(cos_prompt(session, TOKENS(1, 2, INT32_MAX)), INVALID_ARGUMENT, "token 2", "2147483647");
    FAILS(cos_step(session, &out.step), INVALID_ARGUMENT, "no tokens");
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_prompt(session, TOKENS(5, 16)), INVALID_ARGUMENT, "token 1 of the prompt is 16");
    FAILS(cos_prompt(session, many, 32), CONTEXT_FULL, "32", "of which 1 ", "shorten the prompt");
    DECODES(session, STOP, 13, 14, 15, 0);
    FAILS(cos_prompt(session, many, 28), CONTEXT_FULL, "28", "32", "of which 5 ");
    OK(cos_step(session, &out.step)); /* it still says how it ended */
    EQUAL(out.step.finish, COS_FINISH_STOP);
    EQUAL(out.step.tokens_count, 0);
    OK(cos_prompt(session, TOKENS(14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);

    /* A prompt that is longer than the context, at once and over two prompts; exactly as long; one shorter. */
    session = SESSION(engine, 0);
    FAILS(cos_prompt(session, many, 33), CONTEXT_FULL, "33", "32", "shorten the prompt");
    FAILS(cos_prompt(session, many, SIZE_MAX), CONTEXT_FULL, "18446744073709551615", "32");
    FAILS(cos_prompt(session, many, SIZE_MAX / 4 + 2), CONTEXT_FULL, "32");
    OK(cos_prompt(session, many, 20));
    FAILS(cos_prompt(session, many, 13), CONTEXT_FULL, "13", "32", "of which 20 ");
    OK(cos_prompt(session, many, 12));
    for (int i = 0; i < 2; i++) {
        OK(cos_step(session, &out.step));
        EQUAL(out.step.finish, COS_FINISH_CONTEXT_FULL);
        EQUAL(out.step.tokens_count, 0);
        FAILS(cos_prompt(session, many, 1), CONTEXT_FULL, "32", "of which 32 ");
    }
    cos_free(session);
    session = SESSION(engine, 0);
    OK(cos_prompt(session, many, 30));
    OK(cos_prompt(session, TOKENS(7)));
    DECODES(session, CONTEXT_FULL, 8);
    FAILS(cos_prompt(session, many, 1), CONTEXT_FULL, "of which 32 ");
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Logits that are no numbers ------------------------------------------------------------------------------- */

static const char *const COMBINES[] = {
    "{'kind':'weighted','weights':[0.5,0.5]}",
    "{'kind':'logits','weights':[1,0.5]}",
    "{'kind':'contrastive','mu':0.1}",                    /* subtracts what may be infinite */
    "{'kind':'contrastive','mu':0.1,'plausibility':0.5}", /* may mask what is wrong */
    "{'kind':'target','model':1}",
};

/* The fixture tiny with one that breaks, called "broken". */
static cos_engine *engine_with(const char *model, const char *combine) {
    char json[512];
    snprintf(json, sizeof json, CONFIG("", TINY ",{'path':'$%s','name':'broken'}", "%s"), model, combine);
    return ENGINE(json);
}

/* Steps fail, each in the same way, and commit nothing. */
static void stays_numeric(int line, const char *what, cos_session *session, const char *says) {
    uint64_t before = committed(session);
    for (int i = 0; i < 2; i++) {
        reset();
        fails(line, what, cos_step(session, &out.step), COS_ERROR_NUMERIC, (const char *const[]){says, "broken", NULL});
    }
    equal(line, what, committed(session), before);
}

static void numeric_with(const char *combine, cos_session_options greedy) {
    char what[256];
    snprintf(what, sizeof what, "%s, strategy %d, proposals %d", combine, greedy.strategy,
             greedy.proposal_lengths ? greedy.proposal_lengths[0] : -1);
    cos_session_options sampled = greedy;
    sampled.temperature = 1;
    sampled.targets = COS_TARGETS_COMBINED;

    /* Token by token up to 13, behind which there is no number. What came before is kept, whatever the strategy, and a
     * prompt leads on. */
    cos_engine *engine = engine_with("nan", combine);
    cos_session *session = open_session(__LINE__, engine, greedy);
    OK(cos_prompt(session, TOKENS(10)));
    cos_error_free(decode(__LINE__, what, session, TOKENS(11, 12, 13), COS_FINISH_NONE));
    equal(__LINE__, what, committed(session), 3);
    stays_numeric(__LINE__, what, session, "NaN");
    OK(cos_prompt(session, TOKENS(14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);

    /* At once behind a prompt; then a fresh session on the same engine. */
    session = open_session(__LINE__, engine, sampled);
    OK(cos_prompt(session, TOKENS(1, 13)));
    stays_numeric(__LINE__, what, session, "NaN");
    cos_free(session);
    session = open_session(__LINE__, engine, greedy);
    OK(cos_prompt(session, TOKENS(13, 14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);
    cos_engine_free(engine);

    /* Plus infinity for one token, minus infinity for all. */
    engine = engine_with("inf", combine);
    for (int32_t token = 11; token <= 12; token++) {
        for (int i = 0; i < 2; i++) {
            session = open_session(__LINE__, engine, i ? sampled : greedy);
            OK(cos_prompt(session, TOKENS(token)));
            stays_numeric(__LINE__, what, session, "infinity");
            cos_free(session);
        }
    }
    cos_engine_free(engine);
}

static void numeric(void) {
    static const int32_t many[] = {4, 4};
    cos_engine *engine = engine_with("nan", "{'kind':'target','model':0}");
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        cos_session_options plain = {.strategy = strategy}, eager = plain;
        eager.proposal_lengths = many;
        eager.proposal_lengths_count = COUNT(many);
        for (size_t i = 0; i < COUNT(COMBINES); i++) {
            numeric_with(COMBINES[i], plain);
            numeric_with(COMBINES[i], eager);
        }
        /* A model that only drafts has no say, so it cannot spoil what others decide, in the middle or at once. */
        cos_session *session = SESSION(engine, .proposal_lengths = TOKENS(0, 4), .strategy = strategy);
        OK(cos_prompt(session, TOKENS(10)));
        DECODES(session, STOP, 11, 12, 13, 14, 15, 0);
        OK(cos_prompt(session, TOKENS(13)));
        DECODES(session, STOP, 14, 15, 0);
        cos_free(session);
    }
    cos_engine_free(engine);

    /* Routed to the broken model, always. */
    engine = engine_with("nan", COMBINES[0]);
    cos_session *session = SESSION(engine, .targets = COS_TARGETS_ROUTED, .temperature = 1,
                                   .weights = FLOATS(0, 1));
    OK(cos_prompt(session, TOKENS(13)));
    stays_numeric(__LINE__, "routed", session, "NaN");
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Text ----------------------------------------------------------------------------------------------------- */

static void texts(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    FAILS(cos_engine_encode(engine, "a \xff", 3, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "text", "UTF-8", "2");
    FAILS(cos_engine_encode(engine, "a xyz", 5, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "text", "encoded");
    FAILS(cos_engine_encode(engine, "a b c", 5, 0, out.tokens, 2, &out.count), BUFFER_TOO_SMALL,
          "3 tokens needed", "2 given");
    FAILS(cos_engine_decode(engine, TOKENS(1, 2), out.chars, 2, &out.count), BUFFER_TOO_SMALL,
          "3 bytes needed", "2 given");
    FAILS(cos_engine_decode(engine, TOKENS(1, -1), out.chars, 8, &out.count), INVALID_ARGUMENT, "token -1");
    FAILS(cos_engine_decode(engine, TOKENS(1, 16), out.chars, 8, &out.count), INVALID_ARGUMENT, "token 16", "0 to 15");

    cos_text_stream *stream = NULL;
    OK(cos_text_stream_new(engine, &stream));
    FAILS(cos_text_stream_prompt(stream, TOKENS(3, 16)), INVALID_ARGUMENT, "token 16", "0 to 15");
    OK(cos_text_stream_push(stream, TOKENS(1), &out.text, &out.count));
    EQUAL(out.count == 2 && !memcmp(out.text, " a", 2), true); /* behind a prompt */
    FAILS(cos_text_stream_prompt(stream, NULL, 0), INVALID_ARGUMENT, "finish");
    OK(cos_text_stream_finish(stream, &out.text, &out.count));
    OK(cos_text_stream_prompt(stream, NULL, 0));
    OK(cos_text_stream_push(stream, TOKENS(1), &out.text, &out.count));
    EQUAL(out.count == 1 && out.text[0] == 'a', true); /* behind none */
    FAILS(cos_text_stream_push(stream, TOKENS(3, -1), &out.text, &out.count), INVALID_ARGUMENT, "token -1");
    FAILS(cos_text_stream_push(stream, TOKENS(3, 16), &out.text, &out.count), INVALID_ARGUMENT, "token 16", "0 to 15");
    OK(cos_text_stream_push(stream, TOKENS(2), &out.text, &out.count)); /* no 3 came between */
    EQUAL(out.count == 2 && !memcmp(out.text, " b", 2), true);
    FAILS(cos_text_stream_set_stops(stream, (const char *[]){"b", ""}, (size_t[]){1, 0}, 2), INVALID_ARGUMENT,
          "stop string 1 is empty");
    FAILS(cos_text_stream_set_stops(stream, (const char *[]){"\xff"}, (size_t[]){1}, 1), INVALID_ARGUMENT, "UTF-8");
    OK(cos_text_stream_push(stream, TOKENS(2), &out.text, &out.count)); /* "b" is none after these */
    EQUAL(out.count == 2 && !cos_text_stream_stopped(stream), true);
    cos_text_stream_free(stream);
    cos_engine_free(engine);

    engine = ENGINE(ONE(PATH("@longer")));
    FAILS(cos_engine_encode(engine, "a z", 3, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT,
          "token 4294967294 (\"z\")", "0 to 15");
    cos_engine_free(engine);

    engine = ENGINE(ONE(PATH("$notoken")));
    FAILS(cos_engine_encode(engine, "a", 1, 0, out.tokens, 8, &out.count), UNSUPPORTED, "put", "notoken/model.onnx");
    FAILS(cos_engine_decode(engine, TOKENS(1), out.chars, 8, &out.count), UNSUPPORTED, "put", "notoken/model.onnx");
    FAILS(cos_text_stream_new(engine, &out.stream), UNSUPPORTED, "put", "notoken/model.onnx");
    cos_session *session = SESSION(engine, 0); /* tokens do */
    OK(cos_prompt(session, TOKENS(14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Two threads ---------------------------------------------------------------------------------------------- */

enum { LONG_RUN = 100, LONG_TEXT = 20000 };

/* What one thread saw. */
struct worker {
    cos_session *session;
    cos_text_stream *stream;
    uint64_t tokens, busy, others;
};

/* Count an error, and free it. */
static bool refused(struct worker *worker, cos_error *error) {
    bool busy = cos_error_code(error) == COS_ERROR_BUSY && strstr(cos_error_message(error), "another thread");
    worker->busy += busy;
    worker->others += error && !busy;
    cos_error_free(error);
    return error != NULL;
}

/* Step until the sequence ends, whoever else does; count the tokens that came to us. */
static void *step_until_end(void *argument) {
    struct worker *worker = argument;
    cos_step_result step = {.struct_size = sizeof step};
    while (!step.finish && !worker->others)
        if (!refused(worker, cos_step(worker->session, &step)))
            worker->tokens += step.tokens_count;
    return NULL;
}

static void *push_long_text(void *argument) {
    static int32_t tokens[LONG_TEXT];
    struct worker *worker = argument;
    const char *text;
    size_t bytes;
    for (size_t i = 0; i < LONG_TEXT; i++)
        tokens[i] = 1 + (int32_t)(i % 15);
    while (refused(worker, cos_text_stream_push(worker->stream, tokens, LONG_TEXT, &text, &bytes)) && !worker->others)
        ;
    worker->tokens = LONG_TEXT;
    return NULL;
}

static pthread_t start(int line, void *(*body)(void *), struct worker *worker) {
    pthread_t thread;
    equal(line, "pthread_create", (unsigned long long)pthread_create(&thread, NULL, body, worker), 0);
    return thread;
}

static void threads(void) {
    char json[2 * PATH_MAX];
    snprintf(json, sizeof json, ONE(PATH("%s/models/demo/base")), root);
    cos_engine *engine = ENGINE(json);
    cos_session *sessions[2]; /* one for two threads, one for comparison */
    for (int i = 0; i < 2; i++) {
        sessions[i] = SESSION(engine, .max_tokens = LONG_RUN, .stop_tokens = ONES); /* none stop it */
        OK(cos_prompt(sessions[i], TOKENS(100, 200, 300)));
    }

    /* Two threads step through one sequence: each token comes to one of them, and now and then one is turned away. */
    struct worker here = {.session = sessions[0]}, there = here;
    pthread_t thread = start(__LINE__, step_until_end, &there);
    step_until_end(&here);
    pthread_join(thread, NULL);
    EQUAL(here.busy + there.busy > 0, true);
    EQUAL(here.others + there.others, 0);
    EQUAL(here.tokens + there.tokens, LONG_RUN);
    EQUAL(committed(sessions[0]), LONG_RUN);

    /* One steps, the other is turned away from everything but statistics. */
    OK(cos_prompt(sessions[0], TOKENS(400)));
    here = there = (struct worker){.session = sessions[0]};
    thread = start(__LINE__, step_until_end, &there);
    cos_stats stats = {.struct_size = sizeof stats};
    uint64_t seen = 0, lost = 0;
    while (pthread_tryjoin_np(thread, NULL) == EBUSY) {
        cos_error *error = cos_prompt(sessions[0], NULL, 1), *other = cos_step(sessions[0], NULL);
        lost += error == NULL || other == NULL; /* if not busy, they are refused for their NULL */
        refused(&here, error), refused(&here, other);
        error = cos_session_stats(sessions[0], &stats);
        lost += error != NULL || stats.tokens < seen || stats.tokens > 2 * LONG_RUN;
        cos_error_free(error);
        seen = stats.tokens;
    }
    EQUAL(lost, 0);
    EQUAL(here.busy > 0, true);
    EQUAL(there.others, 0);
    EQUAL(there.tokens, LONG_RUN);

    /* The sequence is the one that a single thread makes: both go on in the same way. */
    struct worker single = {.session = sessions[1]};
    step_until_end(&single);
    OK(cos_prompt(sessions[1], TOKENS(400)));
    step_until_end(&single);
    EQUAL(single.tokens, 2 * LONG_RUN);
    EQUAL(single.busy + single.others, 0);
    int32_t tokens[2][LONG_RUN + 64];
    for (int i = 0; i < 2; i++) {
        cos_step_result step = {.struct_size = sizeof step};
        size_t count = 0;
        OK(cos_prompt(sessions[i], TOKENS(500)));
        while (!step.finish && OK(cos_step(sessions[i], &step)))
            for (size_t k = 0; k < step.tokens_count && count < COUNT(tokens[i]); k++)
                tokens[i][count++] = step.tokens[k];
        EQUAL(count, LONG_RUN);
        cos_free(sessions[i]);
    }
    EQUAL(memcmp(tokens[0], tokens[1], LONG_RUN * sizeof **tokens), 0);
    cos_engine_free(engine);

    /* A text stream: one pushes a long text, the other nothing. */
    engine = ENGINE(ONE(TINY));
    here = there = (struct worker){0};
    OK(cos_text_stream_new(engine, &here.stream));
    there.stream = here.stream;
    thread = start(__LINE__, push_long_text, &there);
    const char *text;
    size_t bytes;
    while (pthread_tryjoin_np(thread, NULL) == EBUSY)
        refused(&here, cos_text_stream_push(here.stream, NULL, 0, &text, &bytes));
    EQUAL(here.busy + there.busy > 0, true);
    EQUAL(here.others + there.others, 0);
    EQUAL(there.tokens, LONG_TEXT);
    OK(cos_text_stream_finish(here.stream, &out.text, &out.count)); /* it works and starts anew */
    OK(cos_text_stream_push(here.stream, TOKENS(1), &out.text, &out.count));
    EQUAL(out.count == 2 && !memcmp(out.text, " a", 2), true);
    cos_text_stream_free(here.stream);
    cos_engine_free(engine);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: errors REPOSITORY\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    root = must(realpath(argv[1], NULL), argv[1]);
    char folder[] = "errors-XXXXXX";
    work = must(realpath(must(mkdtemp(folder), folder), NULL), folder);
    runtime();
    configurations();
    nulls();
    sizes();
    options();
    functions();
    set_weights();
    prompts();
    numeric();
    texts();
    threads();
    nftw(work, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (failures)
        printf("%d of %d checks failed\n", failures, checks);
    else
        printf("%d checks passed\n", checks);
    free((void *)root);
    free((void *)work);
    return failures ? 1 : 0;
}
