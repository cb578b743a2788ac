/* The native methods of io.cosrt.Native. Each calls one function of cos.h.
 *
 * Java has all state: io.cosrt.NativeObject ensures that a pointer is valid, and that one thread uses it. This file
 * keeps only method ids, and the running step of each thread. Text is passed as bytes of UTF-8, because JNI's strings
 * are in a modified UTF-8. Arrays are copied, so that no call delays the garbage collector.
 */

#define _GNU_SOURCE /* RTLD_NOLOAD, dladdr */

#include <dlfcn.h>
#include <jni.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "cos.h"
#include "functions.h"
#include "options.h"

#define POINTER(type, handle) ((type *)(uintptr_t)(handle))
_Static_assert(sizeof(jlong) == sizeof(void *), "arrays of longs are arrays of pointers");

/* Static methods of io.cosrt.Native. Unlike a reference to the class, an id does not keep the class loader alive. */
static jmethodID failed_method, stepped_method, progress_method, request_stepped_method, choice_news_method;

/* ---- errors and statistics */

/* `json` is NULL if the error is not the library's. */
static void throw_error(JNIEnv *env, jclass native, jint code, const char *text, jthrowable cause, jint status,
                        const char *json)
{
    jbyteArray message = new_bytes(env, text, strlen(text));
    jbyteArray body = message && json ? new_bytes(env, json, strlen(json)) : NULL;
    if (message && (body || !json))
        (*env)->CallStaticVoidMethod(env, native, failed_method, code, message, cause, status, body);
}

/* Throws `error` as an exception and frees it. Returns 0 if it is NULL. */
static int failed(JNIEnv *env, jclass native, cos_error *error, jthrowable cause)
{
    if (!error) return 0;
    throw_error(env, native, cos_error_code(error), cos_error_message(error), cause, cos_error_status(error),
                cos_error_json(error));
    cos_error_free(error);
    return 1;
}

/* The statistics in the order of io.cosrt.Stats. */
static jlongArray new_stats(JNIEnv *env, const cos_stats *stats)
{
    const jlong values[] = {
        (jlong)stats->steps, (jlong)stats->tokens, (jlong)stats->proposed, (jlong)stats->tested, (jlong)stats->accepted,
        (jlong)stats->forwards, (jlong)stats->positions, (jlong)stats->model_ns, (jlong)stats->total_ns,
        (jlong)stats->near_ties, (jlong)stats->planned_ns, (jlong)stats->expected_ns, (jlong)stats->standard_ns,
        (jlong)stats->rows_copied, (jlong)stats->prefix_tokens, (jlong)stats->recomputed_tokens,
    };
    const jsize count = sizeof values / sizeof *values;
    jlongArray array = (*env)->NewLongArray(env, count);
    if (array) (*env)->SetLongArrayRegion(env, array, 0, count, values);
    return array;
}

/* ---- engines */

static jbyteArray version(JNIEnv *env, jclass native)
{
    (void)native;
    return new_bytes(env, cos_version(), strlen(cos_version()));
}

static jlong make_engine(JNIEnv *env, jclass native, jbyteArray bytes,
                         cos_error *(*make)(const char *text, cos_engine **out_engine))
{
    char *text = copy_text(env, bytes);
    if (!text) return 0;
    cos_engine *engine = NULL;
    cos_error *error = make(text, &engine);
    free(text);
    return failed(env, native, error, NULL) ? 0 : HANDLE(engine);
}

static jlong engine_open(JNIEnv *env, jclass native, jbyteArray path)
{
    return make_engine(env, native, path, cos_engine_open);
}

static jlong engine_new(JNIEnv *env, jclass native, jbyteArray json)
{
    return make_engine(env, native, json, cos_engine_new);
}

static void engine_free(JNIEnv *env, jclass native, jlong engine)
{
    (void)env, (void)native;
    cos_engine_free(POINTER(cos_engine, engine));
}

static jint engine_vocab_size(JNIEnv *env, jclass native, jlong engine)
{
    (void)env, (void)native;
    return (jint)cos_engine_vocab_size(POINTER(cos_engine, engine));
}

static jint engine_model_count(JNIEnv *env, jclass native, jlong engine)
{
    (void)env, (void)native;
    return (jint)cos_engine_model_count(POINTER(cos_engine, engine));
}

static jbyteArray engine_describe(JNIEnv *env, jclass native, jlong engine)
{
    const char *json = NULL;
    if (failed(env, native, cos_engine_describe(POINTER(cos_engine, engine), &json), NULL)) return NULL;
    return new_bytes(env, json, strlen(json));
}

static jbyteArray engine_describe_table(JNIEnv *env, jclass native, jlong engine)
{
    const char *table = NULL;
    if (failed(env, native, cos_engine_describe_table(POINTER(cos_engine, engine), &table), NULL)) return NULL;
    return new_bytes(env, table, strlen(table));
}

static jlongArray engine_stats(JNIEnv *env, jclass native, jlong engine)
{
    cos_stats stats = { .struct_size = sizeof stats };
    cos_error *error = cos_engine_stats(POINTER(cos_engine, engine), &stats);
    return failed(env, native, error, NULL) ? NULL : new_stats(env, &stats);
}

/* The text may grow between two calls, so it has no size to ask for. */
static jbyteArray engine_metrics(JNIEnv *env, jclass native, jlong engine)
{
    for (size_t capacity = 1 << 15;; capacity *= 2) {
        char *text = malloc(capacity);
        if (!text) {
            out_of_memory(env);
            return NULL;
        }
        size_t bytes = 0;
        cos_error *error = cos_engine_metrics(POINTER(cos_engine, engine), text, capacity, &bytes);
        const int is_small = cos_error_code(error) == COS_ERROR_BUFFER_TOO_SMALL;
        jbyteArray result = NULL;
        if (is_small)
            cos_error_free(error);
        else if (!failed(env, native, error, NULL))
            result = new_bytes(env, text, bytes);
        free(text);
        if (!is_small) return result;
    }
}

/* The progress function of a preparation, which runs on the thread of its call, and what it has thrown. */
typedef struct preparing {
    JNIEnv *env;
    jclass native;
    jobject progress;
    jthrowable thrown;
} preparing;

static int32_t progress(double share, void *user_data)
{
    preparing *this = user_data;
    JNIEnv *env = this->env;
    jboolean goes_on = (*env)->CallStaticBooleanMethod(env, this->native, progress_method, this->progress, share);
    this->thrown = (*env)->ExceptionOccurred(env);
    if (this->thrown) (*env)->ExceptionClear(env);
    return this->thrown || !goes_on;
}

static jdouble engine_prepare(JNIEnv *env, jclass native, jlong engine, jint sessions, jint tokens, jdouble seconds,
                              jobject function)
{
    preparing this = { env, native, function, NULL };
    const cos_prepare_options options = {
        .struct_size = sizeof options,
        .sessions = (uint32_t)sessions,
        .tokens = (uint32_t)tokens,
        .seconds = seconds,
        .progress = progress,
        .progress_data = &this,
    };
    double share = 0;
    if (!failed(env, native, cos_engine_prepare(POINTER(cos_engine, engine), &options, &share), NULL) && this.thrown)
        throw_error(env, native, COS_ERROR_CALLBACK, "the progress function threw an exception", this.thrown, 0,
                    NULL);
    return share;
}

static jintArray engine_encode(JNIEnv *env, jclass native, jlong engine, jbyteArray bytes, jint flags)
{
    char *text = copy_text(env, bytes);
    if (!text) return NULL;
    size_t length = (size_t)(*env)->GetArrayLength(env, bytes), count = 0;
    size_t capacity = length + 64; /* always enough, see cos_engine_encode */
    int32_t *tokens = malloc(capacity * sizeof *tokens);
    jintArray result = NULL;
    if (!tokens)
        out_of_memory(env);
    else if (!failed(env, native, cos_engine_encode(POINTER(cos_engine, engine), text, length, flags, tokens,
                                                    capacity, &count), NULL))
        result = new_ints(env, tokens, count);
    free(tokens);
    free(text);
    return result;
}

/* The text of messages, or their tokens. */
static jobject engine_chat(JNIEnv *env, jclass native, jlong handle, jbyteArray bytes, jboolean generation,
                           jboolean encodes)
{
    char *json = copy_text(env, bytes);
    if (!json) return NULL;
    const cos_engine *engine = POINTER(cos_engine, handle);
    size_t length = (size_t)(*env)->GetArrayLength(env, bytes), capacity = 2 * length + 4096, count = 0;
    void *out;
    cos_error *error = NULL;
    while ((out = malloc(capacity * (encodes ? sizeof(int32_t) : 1)))) {
        error = encodes ? cos_engine_chat_encode(engine, json, length, generation, out, capacity, &count)
                        : cos_engine_chat(engine, json, length, generation, out, capacity, &count);
        if (cos_error_code(error) != COS_ERROR_BUFFER_TOO_SMALL) break;
        cos_error_free(error);
        free(out);
        capacity *= 4;
    }
    jobject result = NULL;
    if (!out)
        out_of_memory(env);
    else if (!failed(env, native, error, NULL))
        result = encodes ? (jobject)new_ints(env, out, count) : (jobject)new_bytes(env, out, count);
    free(out);
    free(json);
    return result;
}

static jbyteArray engine_decode(JNIEnv *env, jclass native, jlong handle, jintArray array, jboolean special)
{
    cos_error *(*decode)(const cos_engine *, const int32_t *, size_t, char *, size_t, size_t *) =
        special ? cos_engine_decode_special : cos_engine_decode;
    const cos_engine *engine = POINTER(cos_engine, handle);
    copied tokens = copy_ints(env, array);
    if (tokens.failed) return NULL;
    jbyteArray result = NULL;
    char *text = NULL;
    size_t bytes = 0;
    if (failed(env, native, decode(engine, tokens.data, tokens.count, NULL, 0, &bytes), NULL)) goto done;
    text = malloc(bytes + 1);
    if (!text)
        out_of_memory(env);
    else if (!failed(env, native, decode(engine, tokens.data, tokens.count, text, bytes + 1, &bytes), NULL))
        result = new_bytes(env, text, bytes);
done:
    free(text);
    free(tokens.data);
    return result;
}

/* ---- sessions */

static jlong session_new(JNIEnv *env, jclass native, jlong engine, jlong seed, jobjectArray arrays, jlong number,
                         jboolean combines, jboolean constrains, jboolean weighs)
{
    given given;
    cos_session *session = NULL;
    if (read_options(env, seed, arrays, &given)) {
        cos_session_options *const options = &given.options;
        options->combine = combines ? combine : NULL;
        options->constrain = constrains ? constrain : NULL;
        options->weigh = weighs ? weigh : NULL;
        options->combine_data = options->constrain_data = options->weigh_data = POINTER(void, number);
        failed(env, native, cos_session_new(POINTER(cos_engine, engine), options, &session), NULL);
    }
    release_options(&given);
    return HANDLE(session);
}

static void session_set_options(JNIEnv *env, jclass native, jlong session, jlong seed, jobjectArray arrays,
                                jlong number, jboolean constrains)
{
    given given;
    if (read_options(env, seed, arrays, &given)) {
        given.options.constrain = constrains ? constrain : NULL;
        given.options.constrain_data = POINTER(void, number);
        failed(env, native, cos_session_set_options(POINTER(cos_session, session), &given.options), NULL);
    }
    release_options(&given);
}

static jbyteArray session_save(JNIEnv *env, jclass native, jlong handle)
{
    const cos_session *session = POINTER(cos_session, handle);
    size_t size = 0;
    if (failed(env, native, cos_session_save(session, NULL, 0, &size), NULL)) return NULL;
    char *bytes = malloc(size);
    jbyteArray result = NULL;
    if (!bytes)
        out_of_memory(env);
    else if (!failed(env, native, cos_session_save(session, bytes, size, &size), NULL))
        result = new_bytes(env, bytes, size);
    free(bytes);
    return result;
}

static jlong session_restore(JNIEnv *env, jclass native, jlong engine, jbyteArray saved)
{
    char *bytes = copy_text(env, saved);
    if (!bytes) return 0;
    const size_t size = (size_t)(*env)->GetArrayLength(env, saved);
    cos_session *session = NULL;
    failed(env, native, cos_session_restore(POINTER(cos_engine, engine), bytes, size, &session), NULL);
    free(bytes);
    return HANDLE(session);
}

static void session_free(JNIEnv *env, jclass native, jlong session)
{
    (void)env, (void)native;
    cos_free(POINTER(cos_session, session));
}

static void prompt(JNIEnv *env, jclass native, jlong session, jintArray array)
{
    copied tokens = copy_ints(env, array);
    if (tokens.failed) return;
    failed(env, native, cos_prompt(POINTER(cos_session, session), tokens.data, tokens.count), NULL);
    free(tokens.data);
}

/* The scope is text that ends with NUL. */
static void set_scope(JNIEnv *env, jclass native, jlong session, jbyteArray scope)
{
    char *text = copy_text(env, scope);
    if (!text) return;
    failed(env, native, cos_session_set_scope(POINTER(cos_session, session), text), NULL);
    free(text);
}

static jlong session_fork(JNIEnv *env, jclass native, jlong session, jlong seed)
{
    cos_session *copy = NULL;
    failed(env, native, cos_session_fork(POINTER(cos_session, session), (uint64_t)seed, &copy), NULL);
    return HANDLE(copy);
}

static void session_rewind(JNIEnv *env, jclass native, jlong session, jlong length)
{
    failed(env, native, cos_session_rewind(POINTER(cos_session, session), (size_t)length), NULL);
}

static void set_weights(JNIEnv *env, jclass native, jlong session, jfloatArray array)
{
    copied weights = copy_floats(env, array);
    if (weights.failed) return;
    failed(env, native, cos_session_set_weights(POINTER(cos_session, session), weights.data, weights.count), NULL);
    free(weights.data);
}

/* The result of a step as an object of Java; NULL with an exception if the step has failed. */
static jobject stepped(JNIEnv *env, jclass native, cos_error *error, const cos_step_result *result, size_t models,
                       jthrowable thrown)
{
    if (failed(env, native, error, thrown)) return NULL;
    jintArray tokens = new_ints(env, result->tokens, result->tokens_count);
    if (!tokens) return NULL;
    jfloatArray logarithms = NULL;
    if (result->log_probabilities) {
        logarithms = new_floats(env, result->log_probabilities, result->tokens_count);
        if (!logarithms) return NULL;
    }
    jintArray best = NULL;
    jfloatArray of_best = NULL, of_models = NULL;
    if (result->top_tokens) {
        const size_t count = result->tokens_count * result->top_count;
        best = new_ints(env, result->top_tokens, count);
        of_best = best ? new_floats(env, result->top_log_probabilities, count) : NULL;
        if (!of_best) return NULL;
    }
    if (result->model_log_probabilities) {
        of_models = new_floats(env, result->model_log_probabilities, result->tokens_count * models);
        if (!of_models) return NULL;
    }
    jintArray origins = NULL;
    if (result->origins) {
        /* A pair of numbers for each token. */
        origins = new_ints(env, &result->origins->kind, 2 * result->tokens_count);
        if (!origins) return NULL;
    }
    return (*env)->CallStaticObjectMethod(env, native, stepped_method, tokens, logarithms, result->finish, best,
                                          of_best, of_models, origins);
}

/* Steps the sessions, or scores tokens with a single one if there are any. Puts into `outcomes` a StepResult or an
 * exception of each. `thrown` gets what the functions of each session have thrown. */
static void step(JNIEnv *env, jclass native, jboolean many, jintArray scored, jlongArray sessions, jlongArray numbers,
                 jintArray models, jobjectArray combiners, jobjectArray constrainers, jobjectArray weighers,
                 jobjectArray thrown, jobjectArray outcomes)
{
    const copied tokens = copy_ints(env, scored);
    if (tokens.failed) return;
    const size_t count = (size_t)(*env)->GetArrayLength(env, sessions);
    /* One array for all, the pointers of the sessions first. */
    jlong *const handles = calloc(count, 2 * sizeof *handles + sizeof(cos_step_result) + sizeof(cos_error *) +
                                               sizeof(jint));
    if (!handles) {
        free(tokens.data);
        out_of_memory(env);
        return;
    }
    jlong *const own = handles + count;
    cos_step_result *const results = (cos_step_result *)(own + count);
    cos_error **const errors = (cos_error **)(results + count);
    jint *const widths = (jint *)(errors + count);
    (*env)->GetIntArrayRegion(env, models, 0, (jsize)count, widths);
    (*env)->GetLongArrayRegion(env, sessions, 0, (jsize)count, handles);
    (*env)->GetLongArrayRegion(env, numbers, 0, (jsize)count, own);
    for (size_t i = 0; i < count; i++) results[i].struct_size = sizeof results[i];

    const stepping this = { env, native, count, own, combiners, constrainers, weighers, thrown };
    const stepping *const outer = running;
    running = &this; /* a function may step other sessions */
    cos_error *error = NULL;
    cos_session *const *const given = (cos_session *const *)handles;
    if (many) error = cos_step_many(given, count, results, errors);
    else if (scored) errors[0] = cos_session_score(given[0], tokens.data, tokens.count, &results[0]);
    else errors[0] = cos_step(given[0], &results[0]);
    running = outer;
    free(tokens.data);

    for (size_t i = 0; i < count; i++) {
        if ((*env)->PushLocalFrame(env, 12)) { /* no memory, which is thrown */
            while (i < count) cos_error_free(errors[i++]);
            break;
        }
        jthrowable cause = (*env)->GetObjectArrayElement(env, thrown, (jsize)i);
        jobject outcome = stepped(env, native, errors[i], &results[i], (size_t)widths[i], cause);
        jthrowable exception = (*env)->ExceptionOccurred(env);
        if (exception) {
            (*env)->ExceptionClear(env);
            outcome = exception;
        }
        (*env)->SetObjectArrayElement(env, outcomes, (jsize)i, outcome);
        (*env)->PopLocalFrame(env, NULL);
    }
    free(handles);
    failed(env, native, error, NULL);
}

static void cancel(JNIEnv *env, jclass native, jlong session)
{
    failed(env, native, cos_cancel(POINTER(cos_session, session)), NULL);
}

static jlongArray session_stats(JNIEnv *env, jclass native, jlong session)
{
    cos_stats stats = { .struct_size = sizeof stats };
    cos_error *error = cos_session_stats(POINTER(cos_session, session), &stats);
    return failed(env, native, error, NULL) ? NULL : new_stats(env, &stats);
}

static jbyteArray session_describe(JNIEnv *env, jclass native, jlong session)
{
    const char *json = NULL;
    if (failed(env, native, cos_session_describe(POINTER(cos_session, session), &json), NULL)) return NULL;
    return new_bytes(env, json, strlen(json));
}

/* ---- streams of text */

static jlong text_stream_new(JNIEnv *env, jclass native, jlong engine)
{
    cos_text_stream *stream = NULL;
    return failed(env, native, cos_text_stream_new(POINTER(cos_engine, engine), &stream), NULL) ? 0 : HANDLE(stream);
}

static void text_stream_prompt(JNIEnv *env, jclass native, jlong stream, jintArray array)
{
    copied tokens = copy_ints(env, array);
    if (tokens.failed) return;
    failed(env, native, cos_text_stream_prompt(POINTER(cos_text_stream, stream), tokens.data, tokens.count), NULL);
    free(tokens.data);
}

static void text_stream_show_special(JNIEnv *env, jclass native, jlong stream, jboolean show)
{
    failed(env, native, cos_text_stream_show_special(POINTER(cos_text_stream, stream), show), NULL);
}

/* `text` has all strings, one behind the other. An array of strings would need a local reference for each of them. */
static void text_stream_set_stops(JNIEnv *env, jclass native, jlong stream, jbyteArray text, jintArray lengths)
{
    copied counts = copy_ints(env, lengths);
    if (counts.failed) return;
    char *bytes = copy_text(env, text);
    const char **stops = malloc(counts.count * sizeof *stops + 1);
    size_t *sizes = malloc(counts.count * sizeof *sizes + 1);
    if (bytes && stops && sizes) {
        const char *next = bytes;
        for (size_t i = 0; i < counts.count; next += sizes[i++]) {
            stops[i] = next;
            sizes[i] = (size_t)((const int32_t *)counts.data)[i];
        }
        cos_text_stream *handle = POINTER(cos_text_stream, stream);
        failed(env, native, cos_text_stream_set_stops(handle, stops, sizes, counts.count), NULL);
    } else if (bytes) {
        out_of_memory(env);
    }
    free(sizes);
    free(stops);
    free(bytes);
    free(counts.data);
}

static jboolean text_stream_stopped(JNIEnv *env, jclass native, jlong stream)
{
    (void)env, (void)native;
    return cos_text_stream_stopped(POINTER(cos_text_stream, stream)) != 0;
}

static jbyteArray text_stream_push(JNIEnv *env, jclass native, jlong stream, jintArray array)
{
    copied tokens = copy_ints(env, array);
    if (tokens.failed) return NULL;
    const char *text = NULL;
    size_t bytes = 0;
    cos_error *error = cos_text_stream_push(POINTER(cos_text_stream, stream), tokens.data, tokens.count, &text, &bytes);
    free(tokens.data);
    return failed(env, native, error, NULL) ? NULL : new_bytes(env, text, bytes);
}

static jbyteArray text_stream_finish(JNIEnv *env, jclass native, jlong stream)
{
    const char *text = NULL;
    size_t bytes = 0;
    if (failed(env, native, cos_text_stream_finish(POINTER(cos_text_stream, stream), &text, &bytes), NULL)) return NULL;
    return new_bytes(env, text, bytes);
}

static void text_stream_free(JNIEnv *env, jclass native, jlong stream)
{
    (void)env, (void)native;
    cos_text_stream_free(POINTER(cos_text_stream, stream));
}

/* ---- requests */

#include "requests.h"

/* ---- registration: if Java declares a method differently, loading the library fails here */

#define METHOD(name, signature, function) { (char *)name, (char *)signature, (void *)function }

static const JNINativeMethod methods[] = {
    METHOD("version", "()[B", version),
    METHOD("engineOpen", "([B)J", engine_open),
    METHOD("engineNew", "([B)J", engine_new),
    METHOD("engineFree", "(J)V", engine_free),
    METHOD("engineVocabSize", "(J)I", engine_vocab_size),
    METHOD("engineModelCount", "(J)I", engine_model_count),
    METHOD("engineDescribe", "(J)[B", engine_describe),
    METHOD("engineDescribeTable", "(J)[B", engine_describe_table),
    METHOD("engineStats", "(J)[J", engine_stats),
    METHOD("engineMetrics", "(J)[B", engine_metrics),
    METHOD("enginePrepare", "(JIIDLjava/util/function/DoublePredicate;)D", engine_prepare),
    METHOD("engineEncode", "(J[BI)[I", engine_encode),
    METHOD("engineChat", "(J[BZZ)Ljava/lang/Object;", engine_chat),
    METHOD("engineDecode", "(J[IZ)[B", engine_decode),
    METHOD("sessionNew", "(JJ[Ljava/lang/Object;JZZZ)J", session_new),
    METHOD("sessionSetOptions", "(JJ[Ljava/lang/Object;JZ)V", session_set_options),
    METHOD("sessionSave", "(J)[B", session_save),
    METHOD("sessionRestore", "(J[B)J", session_restore),
    METHOD("sessionFree", "(J)V", session_free),
    METHOD("prompt", "(J[I)V", prompt),
    METHOD("setScope", "(J[B)V", set_scope),
    METHOD("sessionFork", "(JJ)J", session_fork),
    METHOD("sessionRewind", "(JJ)V", session_rewind),
    METHOD("setWeights", "(J[F)V", set_weights),
    METHOD("step", "(Z[I[J[J[I[Lio/cosrt/Combiner;[Lio/cosrt/Constrainer;[Lio/cosrt/Weigher;[Ljava/lang/Throwable;"
                   "[Ljava/lang/Object;)V", step),
    METHOD("cancel", "(J)V", cancel),
    METHOD("sessionStats", "(J)[J", session_stats),
    METHOD("sessionDescribe", "(J)[B", session_describe),
    METHOD("textStreamNew", "(J)J", text_stream_new),
    METHOD("textStreamPrompt", "(J[I)V", text_stream_prompt),
    METHOD("textStreamShowSpecial", "(JZ)V", text_stream_show_special),
    METHOD("textStreamSetStops", "(J[B[I)V", text_stream_set_stops),
    METHOD("textStreamStopped", "(J)Z", text_stream_stopped),
    METHOD("textStreamPush", "(J[I)[B", text_stream_push),
    METHOD("textStreamFinish", "(J)[B", text_stream_finish),
    METHOD("textStreamFree", "(J)V", text_stream_free),
    METHOD("requestNew", "(J[B[BIIII)J", request_new),
    METHOD("requestFree", "(J)V", request_free),
    METHOD("requestChoices", "(J)I", request_choices),
    METHOD("requestStep", "(Z[J[Ljava/lang/Object;)V", request_step),
    METHOD("requestStatus", "(J)Lio/cosrt/RequestStatus;", request_status),
    METHOD("requestAnswer", "(J)[B", request_answer),
    METHOD("requestChoice", "(JII)Lio/cosrt/ChoiceNews;", request_choice),
    METHOD("requestCancel", "(J)V", request_cancel),
};

/* Keeps libcos.so loaded after the class loader of this library is unloaded, because ONNX Runtime stays and calls it.
 * The next class loader's copy of this library finds it by its SONAME. */
static int keep_libcos(void)
{
    Dl_info libcos;
    return dladdr((void *)(uintptr_t)cos_version, &libcos) &&
           dlopen(libcos.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved)
{
    (void)reserved;
    JNIEnv *env = NULL;
    if (!keep_libcos() || (*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_10)) return JNI_ERR;
    jclass native = (*env)->FindClass(env, "io/cosrt/Native");
    if (!native || (*env)->RegisterNatives(env, native, methods, sizeof methods / sizeof *methods)) return JNI_ERR;
    failed_method = (*env)->GetStaticMethodID(env, native, "failed", "(I[BLjava/lang/Throwable;I[B)V");
    if (!failed_method) return JNI_ERR;
    stepped_method = (*env)->GetStaticMethodID(env, native, "stepped", "([I[FI[I[F[F[I)Lio/cosrt/StepResult;");
    if (!stepped_method) return JNI_ERR;
    request_stepped_method =
        (*env)->GetStaticMethodID(env, native, "requestStepped", "(IZJJ)Lio/cosrt/RequestStatus;");
    if (!request_stepped_method) return JNI_ERR;
    choice_news_method = (*env)->GetStaticMethodID(env, native, "choiceNews",
                                                   "([BLio/cosrt/StepResult;)Lio/cosrt/ChoiceNews;");
    if (!choice_news_method) return JNI_ERR;
    progress_method =
        (*env)->GetStaticMethodID(env, native, "progress", "(Ljava/util/function/DoublePredicate;D)Z");
    if (!progress_method) return JNI_ERR;
    return find_functions(env, native) ? JNI_VERSION_10 : JNI_ERR;
}

JNIEXPORT void JNICALL JNI_OnUnload(JavaVM *vm, void *reserved)
{
    (void)reserved;
    JNIEnv *env = NULL;
    if (!(*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_10)) (*env)->DeleteGlobalRef(env, byte_buffer_class);
}
