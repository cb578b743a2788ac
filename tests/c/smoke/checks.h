/* The checks of smoke.c. */
#define _POSIX_C_SOURCE 200809L

#include "cos.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Where a check stands: "FILE:LINE". */
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define HERE __FILE__ ":" TEXT(__LINE__)

static atomic_int checks;

static void check(int holds, const char *what, const char *where) {
    atomic_fetch_add(&checks, 1);
    if (!holds) {
        fprintf(stderr, "%s: failed: %s\n", where, what);
        exit(1);
    }
}

static void check_ok(cos_error *error, const char *what, const char *where) {
    if (error) {
        fprintf(stderr, "%s: error %d: %s\n", where, cos_error_code(error), cos_error_message(error));
    }
    check(!error, what, where);
}

static void check_error(cos_error *error, int32_t code, const char *what, const char *where) {
    check(error && cos_error_code(error) == code && *cos_error_message(error), what, where);
    cos_error_free(error);
}

#define CHECK(condition) check((condition) != 0, #condition, HERE)
#define OK(call) check_ok((call), #call, HERE)
#define FAILS(code, call) check_error((call), (code), #call " fails with " #code, HERE)

static void sleep_ms(long ms) {
    struct timespec time = { .tv_nsec = ms * 1000000 };
    nanosleep(&time, NULL);
}
