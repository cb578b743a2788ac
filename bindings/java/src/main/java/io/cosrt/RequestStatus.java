// How a request stands.

package io.cosrt;

/**
 * How a {@link Request} stands.
 *
 * @param state            whether it goes on
 * @param streams          whether the body asks for a stream
 * @param promptTokens     tokens of the prompts
 * @param completionTokens tokens decoded for all choices
 */
public record RequestStatus(RequestState state, boolean streams, long promptTokens, long completionTokens) {
    /** Whether the request goes on. */
    public boolean isOpen() {
        return state == RequestState.OPEN;
    }
}
