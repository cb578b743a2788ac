/* The functions that the library calls. They call Go. */

#include "callbacks.h"
#include "_cgo_export.h"

static int32_t combine(const float *const *rows, size_t models_count, size_t vocab_size, float *out_scores,
                       void *user_data) {
    return cosGoCombine((void *)rows, models_count, vocab_size, out_scores, (uintptr_t)user_data);
}

void cos_go_set_combine(cos_session_options *options, uintptr_t handle) {
    options->combine = combine;
    options->combine_data = (void *)handle;
}

static int32_t constrain(const int32_t *tokens, size_t tokens_count, size_t kept, uint32_t *mask, size_t mask_words,
                         uint64_t text, void *user_data) {
    return cosGoConstrain((int32_t *)tokens, tokens_count, kept, mask, mask_words, text, (uintptr_t)user_data);
}

void cos_go_set_constrain(cos_session_options *options, uintptr_t handle) {
    options->constrain = constrain;
    options->constrain_data = (void *)handle;
}

static int32_t weigh(const int32_t *tokens, size_t tokens_count, const cos_model_summary *models, size_t models_count,
                     float *weights, void *user_data) {
    return cosGoWeigh((int32_t *)tokens, tokens_count, (cos_model_summary *)models, models_count, weights,
                      (uintptr_t)user_data);
}

void cos_go_set_weigh(cos_session_options *options, uintptr_t handle) {
    options->weigh = weigh;
    options->weigh_data = (void *)handle;
}

static int32_t progress(double share, void *user_data) { return cosGoProgress(share, (uintptr_t)user_data); }

void cos_go_set_progress(cos_prepare_options *options, uintptr_t handle) {
    options->progress = progress;
    options->progress_data = (void *)handle;
}
