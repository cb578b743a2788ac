/* The functions of sessions, which call Java. cosjni.c includes it. */
#ifndef FUNCTIONS_H
#define FUNCTIONS_H

#include <jni.h>
#include <stdint.h>

#include "cos.h"

#define HANDLE(pointer) ((jlong)(uintptr_t)(pointer))

/* Static methods of io.cosrt.Native; see cosjni.c. */
static jmethodID combine_method, constrain_method, weigh_method;
static jclass byte_buffer_class; /* of the boot loader, which is never unloaded */

/* The running step of this thread, for the functions of its sessions. cos_step calls them on its own thread, so a
 * session needs no reference to Java, and the garbage collector can free one that only its own function refers to. The
 * data of a function is the number of its session. */
typedef struct stepping {
    JNIEnv *env;
    jclass native;
    size_t count; /* of sessions */
    const jlong *numbers;
    jobjectArray combiners;
    jobjectArray constrainers;
    jobjectArray weighers;
    jobjectArray thrown; /* what the functions of each session have thrown */
} stepping;
static _Thread_local const stepping *running;

/* A buffer over elements of four bytes. */
static jobject new_buffer(JNIEnv *env, const void *elements, size_t count)
{
    return (*env)->NewDirectByteBuffer(env, (void *)elements, (jlong)(count * sizeof(int32_t)));
}

/* Begins a call of a function of the running step. Returns the index of its session, or -1 if the call must fail: an
 * exception makes a call fail, and all others of the session in this step. */
static jsize enter(const stepping *step, void *user_data, jint references)
{
    if (!step) return -1;
    JNIEnv *env = step->env;
    size_t index = 0;
    while (index < step->count && HANDLE(user_data) != step->numbers[index]) index++;
    if (index == step->count || (*env)->PushLocalFrame(env, references)) return -1;
    if (!(*env)->GetObjectArrayElement(env, step->thrown, (jsize)index)) return (jsize)index;
    (*env)->PopLocalFrame(env, NULL);
    return -1;
}

/* Ends a call, and keeps what was thrown in it. Returns what the library is told. */
static int32_t leave(const stepping *step, jsize index)
{
    JNIEnv *env = step->env;
    jthrowable thrown = (*env)->ExceptionOccurred(env);
    if (thrown) {
        (*env)->ExceptionClear(env);
        (*env)->SetObjectArrayElement(env, step->thrown, index, thrown);
    }
    (*env)->PopLocalFrame(env, NULL);
    return thrown != NULL;
}

static int32_t combine(const float *const *rows, size_t models_count, size_t vocab_size, float *out_scores,
                       void *user_data)
{
    const stepping *step = running;
    const jsize index = enter(step, user_data, (jint)models_count + 5);
    if (index < 0) return 1;
    JNIEnv *env = step->env;
    jobject combiner = (*env)->GetObjectArrayElement(env, step->combiners, index);
    jobjectArray buffers = (*env)->NewObjectArray(env, (jsize)models_count, byte_buffer_class, NULL);
    for (size_t model = 0; model < models_count && !(*env)->ExceptionCheck(env); model++) {
        if (!rows[model]) continue;
        jobject row = new_buffer(env, rows[model], vocab_size);
        if (row) (*env)->SetObjectArrayElement(env, buffers, (jsize)model, row);
    }
    jobject scores = (*env)->ExceptionCheck(env) ? NULL : new_buffer(env, out_scores, vocab_size);
    if (scores) (*env)->CallStaticVoidMethod(env, step->native, combine_method, combiner, buffers, scores);
    return leave(step, index);
}

static int32_t constrain(const int32_t *tokens, size_t tokens_count, size_t kept, uint32_t *mask, size_t mask_words,
                         uint64_t text, void *user_data)
{
    static const int32_t no_tokens;
    const stepping *step = running;
    const jsize index = enter(step, user_data, 6);
    if (index < 0) return 1;
    JNIEnv *env = step->env;
    jobject constrainer = (*env)->GetObjectArrayElement(env, step->constrainers, index);
    jobject given = new_buffer(env, tokens ? tokens : &no_tokens, tokens_count);
    jobject bits = given ? new_buffer(env, mask, mask_words) : NULL;
    if (bits) {
        (*env)->CallStaticVoidMethod(env, step->native, constrain_method, constrainer, given, (jint)kept, (jlong)text,
                                     bits);
    }
    return leave(step, index);
}

static int32_t weigh(const int32_t *tokens, size_t tokens_count, const cos_model_summary *models, size_t models_count,
                     float *weights, void *user_data)
{
    const stepping *step = running;
    const jsize index = enter(step, user_data, 8);
    if (index < 0) return 1;
    JNIEnv *env = step->env;
    jobject weigher = (*env)->GetObjectArrayElement(env, step->weighers, index);
    jobject given = new_buffer(env, tokens, tokens_count);
    jfloatArray confidences = given ? (*env)->NewFloatArray(env, (jsize)models_count) : NULL;
    jfloatArray entropies = confidences ? (*env)->NewFloatArray(env, (jsize)models_count) : NULL;
    jintArray best = entropies ? (*env)->NewIntArray(env, (jsize)models_count) : NULL;
    jobject out = best ? new_buffer(env, weights, models_count) : NULL;
    if (out) {
        for (jsize i = 0; i < (jsize)models_count; i++) {
            (*env)->SetFloatArrayRegion(env, confidences, i, 1, &models[i].confidence);
            (*env)->SetFloatArrayRegion(env, entropies, i, 1, &models[i].entropy);
            (*env)->SetIntArrayRegion(env, best, i, 1, &models[i].best);
        }
        (*env)->CallStaticVoidMethod(env, step->native, weigh_method, weigher, given, confidences, entropies, best,
                                     out);
    }
    return leave(step, index);
}

/* Finds what the functions need of Java. Returns 0 with an exception if something is missing. */
static int find_functions(JNIEnv *env, jclass native)
{
    combine_method = (*env)->GetStaticMethodID(env, native, "combine",
                                               "(Lio/cosrt/Combiner;[Ljava/nio/ByteBuffer;Ljava/nio/ByteBuffer;)V");
    if (!combine_method) return 0;
    constrain_method = (*env)->GetStaticMethodID(
        env, native, "constrain", "(Lio/cosrt/Constrainer;Ljava/nio/ByteBuffer;IJLjava/nio/ByteBuffer;)V");
    if (!constrain_method) return 0;
    weigh_method = (*env)->GetStaticMethodID(
        env, native, "weigh", "(Lio/cosrt/Weigher;Ljava/nio/ByteBuffer;[F[F[ILjava/nio/ByteBuffer;)V");
    if (!weigh_method) return 0;
    jclass byte_buffer = (*env)->FindClass(env, "java/nio/ByteBuffer");
    if (!byte_buffer) return 0;
    byte_buffer_class = (*env)->NewGlobalRef(env, byte_buffer);
    return byte_buffer_class != NULL;
}

#endif
