/* What C and Go share of combine functions. */
#include <stdint.h>
#include "cos.h"

/* Have a session combine by the Go function that a cgo.Handle stands for. (Go must not make a pointer of a number.) */
void cos_go_set_combine(cos_session_options *options, uintptr_t handle);
