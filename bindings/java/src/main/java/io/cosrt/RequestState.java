// Whether a request goes on.

package io.cosrt;

/** Whether a {@link Request} goes on. */
public enum RequestState {
    /** It does. */
    OPEN(0),
    /** All choices have ended. */
    DONE(1),
    /** {@link Request#cancel} ended it, or it is being closed. */
    CANCELLED(2);

    private final int number;

    RequestState(int number) {
        this.number = number;
    }

    static RequestState of(int number) {
        for (RequestState state : values()) {
            if (state.number == number) {
                return state;
            }
        }
        throw new CosException(ErrorCode.UNSUPPORTED,
                "the request has the state " + number + ", which this binding does not know; update the binding");
    }
}
