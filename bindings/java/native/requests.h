/* Requests of OpenAI's protocol. A part of cosjni.c, which includes it behind the functions that it uses. */

#ifndef COSJNI_REQUESTS_H
#define COSJNI_REQUESTS_H

static jlong request_new(JNIEnv *env, jclass native, jlong engine, jbyteArray bytes, jbyteArray name, jint endpoint,
                         jint max_choices, jint max_prompt_tokens, jint max_tokens)
{
    char *body = copy_text(env, bytes);
    if (!body) return 0;
    char *model = name ? copy_text(env, name) : NULL;
    cos_request *request = NULL;
    if (model || !name) {
        const cos_request_options options = {
            .struct_size = sizeof options,
            .endpoint = endpoint,
            .max_choices = (uint32_t)max_choices,
            .max_prompt_tokens = (uint32_t)max_prompt_tokens,
            .max_tokens = (uint32_t)max_tokens,
            .model = model,
        };
        const size_t length = (size_t)(*env)->GetArrayLength(env, bytes);
        failed(env, native, cos_request_new(POINTER(cos_engine, engine), &options, body, length, &request), NULL);
    }
    free(model);
    free(body);
    return HANDLE(request);
}

static void request_free(JNIEnv *env, jclass native, jlong request)
{
    (void)env, (void)native;
    cos_request_free(POINTER(cos_request, request));
}

static jint request_choices(JNIEnv *env, jclass native, jlong request)
{
    (void)env, (void)native;
    return (jint)cos_request_choices(POINTER(cos_request, request));
}

static jobject new_status(JNIEnv *env, jclass native, const cos_request_status *status)
{
    return (*env)->CallStaticObjectMethod(env, native, request_stepped_method, status->state,
                                          (jboolean)(status->streams != 0), (jlong)status->prompt_tokens,
                                          (jlong)status->completion_tokens);
}

static jobject request_status(JNIEnv *env, jclass native, jlong request)
{
    cos_request_status status = { .struct_size = sizeof status };
    cos_error *error = cos_request_get_status(POINTER(cos_request, request), &status);
    return failed(env, native, error, NULL) ? NULL : new_status(env, native, &status);
}

/* Steps the requests. Puts into `outcomes` a RequestStatus or an exception of each. */
static void request_step(JNIEnv *env, jclass native, jboolean many, jlongArray requests, jobjectArray outcomes)
{
    const size_t count = (size_t)(*env)->GetArrayLength(env, requests);
    /* One array for all, the pointers of the requests first. */
    jlong *const handles = calloc(count, sizeof *handles + sizeof(cos_request_status) + sizeof(cos_error *));
    if (!handles) {
        out_of_memory(env);
        return;
    }
    cos_request_status *const results = (cos_request_status *)(handles + count);
    cos_error **const errors = (cos_error **)(results + count);
    (*env)->GetLongArrayRegion(env, requests, 0, (jsize)count, handles);
    for (size_t i = 0; i < count; i++) results[i].struct_size = sizeof results[i];

    cos_error *error = NULL;
    cos_request *const *const given = (cos_request *const *)handles;
    if (many) error = cos_request_step_many(given, count, results, errors);
    else errors[0] = cos_request_step(given[0], &results[0]);

    for (size_t i = 0; i < count; i++) {
        if ((*env)->PushLocalFrame(env, 8)) { /* no memory, which is thrown */
            while (i < count) cos_error_free(errors[i++]);
            break;
        }
        jobject outcome = failed(env, native, errors[i], NULL) ? NULL : new_status(env, native, &results[i]);
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

static jbyteArray request_answer(JNIEnv *env, jclass native, jlong request)
{
    const char *text = NULL;
    size_t bytes = 0;
    if (failed(env, native, cos_request_answer(POINTER(cos_request, request), &text, &bytes), NULL)) return NULL;
    return new_bytes(env, text, bytes);
}

static jobject request_choice(JNIEnv *env, jclass native, jlong request, jint choice, jint models)
{
    cos_choice_news news = { .struct_size = sizeof news };
    cos_error *error = cos_request_choice(POINTER(cos_request, request), (size_t)choice, &news);
    if (failed(env, native, error, NULL)) return NULL;
    /* All but the text is what a step has. */
    const cos_step_result of = {
        .struct_size = sizeof of,
        .tokens = news.tokens,
        .tokens_count = news.tokens_count,
        .finish = news.finish,
        .log_probabilities = news.log_probabilities,
        .top_tokens = news.top_tokens,
        .top_log_probabilities = news.top_log_probabilities,
        .top_count = news.top_count,
        .model_log_probabilities = news.model_log_probabilities,
        .origins = news.origins,
    };
    jobject step = stepped(env, native, NULL, &of, (size_t)models, NULL);
    if ((*env)->ExceptionCheck(env)) return NULL;
    jbyteArray text = new_bytes(env, news.text, news.text_bytes);
    return text ? (*env)->CallStaticObjectMethod(env, native, choice_news_method, text, step) : NULL;
}

static void request_cancel(JNIEnv *env, jclass native, jlong request)
{
    failed(env, native, cos_request_cancel(POINTER(cos_request, request)), NULL);
}

#endif
