// What the body of a request is.

package io.cosrt;

/** What the body of a {@link Request} is. */
public enum Endpoint {
    /** That of POST /v1/completions. */
    COMPLETION(0),
    /** That of POST /v1/chat/completions. */
    CHAT(1);

    final int number;

    Endpoint(int number) {
        this.number = number;
    }
}
