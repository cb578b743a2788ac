// Streams of text.

package io.cosrt;

import java.io.ByteArrayOutputStream;
import java.util.Objects;

/**
 * Decodes a stream of tokens to text. It gives out whole characters only, and can end the text before a stop string.
 * One thread at a time may use it; a call from another thread fails with {@link ErrorCode#BUSY}.
 *
 * <p>The text continues a prompt: the text of the prompt and the text of the stream together are the text of all
 * tokens. So the space before the first word stays. If {@link #prompt} does not set the prompt, the stream assumes that
 * it ends with a whole word.
 */
public final class TextStream extends NativeObject {
    TextStream(long pointer) {
        super(pointer, Native::textStreamFree, running -> { });
    }

    /**
     * Sets the prompt that the text continues: all tokens before it, or none. The call is optional. It must come before
     * the first {@link #push}, or after {@link #finish}. The stream gives no text for these tokens. With some
     * tokenizers, no space begins the text if the prompt is empty, has no text (such as a start token alone), or ends
     * within a word.
     *
     * @throws CosException INVALID_ARGUMENT (also after a push; nothing changes), BUSY
     */
    public void prompt(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        exclusively(stream -> {
            Native.textStreamPrompt(stream, tokens);
            return null;
        });
    }

    /**
     * Sets whether special tokens give their names as text. The call must come before the first {@link #push}, or after
     * {@link #finish}, and before {@link #prompt}: the prompt is unknown again.
     *
     * @throws CosException INVALID_ARGUMENT (after a push; nothing changes), BUSY
     */
    public void showSpecial(boolean show) {
        exclusively(stream -> {
            Native.textStreamShowSpecial(stream, show);
            return null;
        });
    }

    /**
     * Sets the stop strings: the text ends before the first one that is complete, or before the longest of several that
     * are complete at the same place. A stop string may span tokens, and may be or contain the name of a special token.
     * They replace those set before, and text that was given out stays.
     *
     * @param stops none of them empty; without any, no string ends the text
     * @throws CosException INVALID_ARGUMENT (an empty string, or an unpaired surrogate; nothing changes), BUSY
     */
    public void setStops(String... stops) {
        var text = new ByteArrayOutputStream();
        int[] lengths = new int[stops.length];
        for (int i = 0; i < stops.length; i++) {
            byte[] stop = Utf8.encode(stops[i]);
            text.writeBytes(stop);
            lengths[i] = stop.length;
        }
        exclusively(stream -> {
            Native.textStreamSetStops(stream, text.toByteArray(), lengths);
            return null;
        });
    }

    /**
     * Whether a stop string has ended the text. Pushed tokens then give no text until {@link #finish}. After that call,
     * the answer is about the finished text until the next {@link #push}.
     */
    public boolean stopped() {
        return shared(Native::textStreamStopped);
    }

    /**
     * Pushes tokens, such as those of a step, and returns the text that they complete, possibly empty. The stream holds
     * back the bytes of an unfinished character, and text that may become a stop string.
     *
     * @throws CosException INVALID_ARGUMENT (no token is taken), BUSY
     */
    public String push(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        return Utf8.decode(exclusively(stream -> Native.textStreamPush(stream, tokens)));
    }

    /**
     * Finishes the text and returns its rest: what the stream held back, up to a stop string. Bytes that do not form a
     * character become U+FFFD. The next push starts a new text with the same stop strings, and without a prompt.
     *
     * @throws CosException BUSY
     */
    public String finish() {
        return Utf8.decode(exclusively(Native::textStreamFinish));
    }
}
