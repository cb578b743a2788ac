/* The C function that Go calls for combine functions. */
#include <stdint.h>
#include "cos.h"

/* Sets the combine function of a session to a Go function. The handle is a cgo.Handle, which Go must not convert to a
 * pointer itself. */
void cos_go_set_combine(cos_session_options *options, uintptr_t handle);
