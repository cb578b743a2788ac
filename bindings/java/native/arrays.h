/* Arrays of Java from memory of C, and copies of them for C. cosjni.c includes it. */
#ifndef ARRAYS_H
#define ARRAYS_H

#include <jni.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>

static void out_of_memory(JNIEnv *env)
{
    jclass class = (*env)->FindClass(env, "java/lang/OutOfMemoryError");
    if (class) (*env)->ThrowNew(env, class, "no native memory for an array");
}

static jbyteArray new_bytes(JNIEnv *env, const char *bytes, size_t count)
{
    if (count > INT_MAX) {
        out_of_memory(env);
        return NULL;
    }
    jbyteArray array = (*env)->NewByteArray(env, (jsize)count);
    if (array) (*env)->SetByteArrayRegion(env, array, 0, (jsize)count, (const jbyte *)bytes);
    return array;
}

static jintArray new_ints(JNIEnv *env, const int32_t *ints, size_t count)
{
    jintArray array = (*env)->NewIntArray(env, (jsize)count);
    if (array) (*env)->SetIntArrayRegion(env, array, 0, (jsize)count, ints);
    return array;
}

static jfloatArray new_floats(JNIEnv *env, const float *floats, size_t count)
{
    jfloatArray array = (*env)->NewFloatArray(env, (jsize)count);
    if (array) (*env)->SetFloatArrayRegion(env, array, 0, (jsize)count, floats);
    return array;
}

/* Copies an array of bytes and appends a NUL. */
static char *copy_text(JNIEnv *env, jbyteArray bytes)
{
    jsize count = (*env)->GetArrayLength(env, bytes);
    char *text = malloc((size_t)count + 1);
    if (!text) {
        out_of_memory(env);
        return NULL;
    }
    (*env)->GetByteArrayRegion(env, bytes, 0, count, (jbyte *)text);
    text[count] = 0;
    return text;
}

/* A copy of an array of ints or floats. For an empty array, `data` is not NULL: stop tokens need the difference. */
typedef struct copied {
    void *data;
    size_t count;
    int failed;
} copied;

static copied reserve(JNIEnv *env, jarray array)
{
    copied copy = {0};
    if (!array) return copy;
    copy.count = (size_t)(*env)->GetArrayLength(env, array);
    copy.data = malloc(copy.count * sizeof(int32_t) + 1);
    copy.failed = !copy.data;
    if (copy.failed) out_of_memory(env);
    return copy;
}

static copied copy_ints(JNIEnv *env, jintArray array)
{
    copied copy = reserve(env, array);
    if (copy.data) (*env)->GetIntArrayRegion(env, array, 0, (jsize)copy.count, copy.data);
    return copy;
}

static copied copy_floats(JNIEnv *env, jfloatArray array)
{
    copied copy = reserve(env, array);
    if (copy.data) (*env)->GetFloatArrayRegion(env, array, 0, (jsize)copy.count, copy.data);
    return copy;
}

#endif
