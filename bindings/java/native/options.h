/* Options of sessions, from the arrays that Java gives. cosjni.c includes it. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <jni.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "cos.h"

/* The arrays of io.cosrt.SessionOptions.arrays, in its order. The last one is of bytes. */
enum { NUMBERS, REALS, LENGTHS, WEIGHTS, STOP_TOKENS, BIAS_TOKENS, BIAS_VALUES, BANNED, BANNED_LENGTHS, BREAKERS,
       CONSTRAINT, ARRAYS };

/* Options, and what they point to. */
typedef struct given {
    cos_session_options options;
    copied arrays[ARRAYS];
    size_t *banned_lengths;
} given;

/* Copies the arrays. Returns 0 with an exception if there is no memory. */
static int copy_arrays(JNIEnv *env, jobjectArray arrays, given *given)
{
    for (jsize i = 0; i < ARRAYS; i++) {
        jobject array = (*env)->GetObjectArrayElement(env, arrays, i);
        copied *const copy = &given->arrays[i];
        if (i == CONSTRAINT) {
            *copy = reserve(env, array);
            if (copy->data) (*env)->GetByteArrayRegion(env, array, 0, (jsize)copy->count, copy->data);
        } else {
            *copy = i == REALS || i == WEIGHTS || i == BIAS_VALUES ? copy_floats(env, array) : copy_ints(env, array);
        }
        (*env)->DeleteLocalRef(env, array);
        if (copy->failed) return 0;
    }
    const copied *const lengths = &given->arrays[BANNED_LENGTHS];
    given->banned_lengths = malloc(lengths->count * sizeof(size_t) + 1);
    if (!given->banned_lengths) {
        out_of_memory(env);
        return 0;
    }
    for (size_t i = 0; i < lengths->count; i++) given->banned_lengths[i] = (size_t)((const int32_t *)lengths->data)[i];
    return 1;
}

/* Reads options, without functions. `given` must be released, also if there is no memory and this returns 0. */
static int read_options(JNIEnv *env, jlong seed, jobjectArray arrays, given *given)
{
    memset(given, 0, sizeof *given);
    if (!copy_arrays(env, arrays, given)) return 0;
    const copied *const of = given->arrays;
    const int32_t *const numbers = of[NUMBERS].data;
    const float *const reals = of[REALS].data;
    given->options = (cos_session_options){
        .struct_size = sizeof given->options,
        .strategy = numbers[0],
        .temperature = reals[0],
        .top_k = numbers[1],
        .top_p = reals[1],
        .min_p = reals[2],
        .seed = (uint64_t)seed,
        .max_tokens = (uint32_t)numbers[2],
        .proposal_lengths = of[LENGTHS].data,
        .proposal_lengths_count = of[LENGTHS].count,
        .weights = of[WEIGHTS].data,
        .weights_count = of[WEIGHTS].count,
        .stop_tokens = of[STOP_TOKENS].data,
        .stop_tokens_count = of[STOP_TOKENS].count,
        .targets = numbers[3],
        .routes = numbers[4],
        .priority = numbers[5],
        .log_probabilities = numbers[6],
        .repetition_penalty = reals[3],
        .presence_penalty = reals[4],
        .frequency_penalty = reals[5],
        .min_tokens = (uint32_t)numbers[7],
        .bias_tokens = of[BIAS_TOKENS].data,
        .bias_values = of[BIAS_VALUES].data,
        .bias_count = of[BIAS_TOKENS].count,
        .constraint_kind = numbers[9],
        .constraint = of[CONSTRAINT].data,
        .constraint_length = of[CONSTRAINT].count,
        .top_log_probabilities = numbers[10],
        .no_repeat_ngram = numbers[8],
        .banned_tokens = of[BANNED].data,
        .banned_lengths = given->banned_lengths,
        .banned_count = of[BANNED_LENGTHS].count,
        .model_log_probabilities = numbers[11],
        .log_probabilities_before = numbers[12],
        .typical_p = reals[6],
        .xtc_probability = reals[7],
        .xtc_threshold = reals[8],
        .dry_multiplier = reals[9],
        .dry_base = reals[10],
        .dry_allowed_length = numbers[13],
        .dry_breakers = of[BREAKERS].data,
        .dry_breakers_count = of[BREAKERS].count,
    };
    return 1;
}

static void release_options(given *given)
{
    for (int i = 0; i < ARRAYS; i++) free(given->arrays[i].data);
    free(given->banned_lengths);
}

#endif
