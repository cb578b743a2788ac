package io.cosrt;

import java.util.Objects;

/**
 * Turns a stream of tokens into a stream of text that is cut between characters only. One thread at a time may use it; a
 * second one gets {@link ErrorCode#BUSY}.
 */
public final class TextStream extends NativeObject {
    TextStream(long pointer) {
        super(pointer, Native::textStreamFree, running -> { });
    }

    /**
     * The text that further tokens complete, such as those of a step; possibly empty. The bytes of an unfinished character
     * are held back until it is whole.
     *
     * @throws CosException INVALID_ARGUMENT (no token is taken), BUSY
     */
    public String push(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        return Utf8.decode(exclusively(stream -> Native.textStreamPush(stream, tokens)));
    }

    /**
     * The rest of the text: what was held back, with U+FFFD for bytes that are no character. The stream starts anew.
     *
     * @throws CosException BUSY
     */
    public String finish() {
        return Utf8.decode(exclusively(Native::textStreamFinish));
    }
}
