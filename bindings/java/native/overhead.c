/* The loop of io.cosrt.Overhead in C. */

#define _POSIX_C_SOURCE 199309L /* clock_gettime */

#include <jni.h>
#include <stdlib.h>
#include <time.h>

#include "cos.h"

static cos_engine *engine;

static void check(cos_error *error)
{
    if (error) abort();
}

static jlong now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

JNIEXPORT void JNICALL Java_io_cosrt_Overhead_open(JNIEnv *env, jclass class, jstring json)
{
    (void)class;
    const char *text = (*env)->GetStringUTFChars(env, json, NULL);
    check(cos_engine_new(text, &engine));
    (*env)->ReleaseStringUTFChars(env, json, text);
}

/* The time of all steps of a greedy session, in nanoseconds. */
JNIEXPORT jlong JNICALL Java_io_cosrt_Overhead_inC(JNIEnv *env, jclass class, jint tokens)
{
    (void)env, (void)class;
    const int32_t prompt[] = { 1, 2, 3, 4, 5 };
    const cos_session_options options = {
        .struct_size = sizeof options, .max_tokens = (uint32_t)tokens, .stop_tokens = prompt, .log_probabilities = 1 };
    cos_session *session;
    check(cos_session_new(engine, &options, &session));
    check(cos_prompt(session, prompt, sizeof prompt / sizeof *prompt));
    cos_step_result step = { .struct_size = sizeof step };
    volatile int32_t sum = 0;
    jlong start = now();
    do {
        check(cos_step(session, &step));
        for (size_t i = 0; i < step.tokens_count; i++) sum += step.tokens[i];
    } while (!step.finish);
    jlong elapsed = now() - start;
    cos_free(session);
    return elapsed;
}
