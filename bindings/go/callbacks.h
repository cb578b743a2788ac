/* The C functions that Go calls for its callbacks. A handle is a cgo.Handle, which Go must not convert to a pointer
 * itself. */
#include <stdint.h>
#include "cos.h"

/* Sets the combine function of a session to a Go function. */
void cos_go_set_combine(cos_session_options *options, uintptr_t handle);

/* Sets the constraint function of a session to a Go function. */
void cos_go_set_constrain(cos_session_options *options, uintptr_t handle);

/* Sets the weights function of a session to a Go function. */
void cos_go_set_weigh(cos_session_options *options, uintptr_t handle);

/* Sets the progress function of a preparation to a Go function. */
void cos_go_set_progress(cos_prepare_options *options, uintptr_t handle);
