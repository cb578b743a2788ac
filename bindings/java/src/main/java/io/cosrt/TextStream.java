package io.cosrt;

import java.io.ByteArrayOutputStream;
import java.util.Objects;

/**
 * Turns a stream of tokens into a stream of text that is cut between characters only, and ends before a stop string if
 * there are any. One thread at a time may use it; a second one gets {@link ErrorCode#BUSY}.
 *
 * <p>The text continues a prompt, so the space before its first word stays: the text of the prompt and the text of the
 * stream together are the text of all tokens. Unless {@link #prompt} tells the prompt, the stream assumes one that ends
 * with a whole word.
 */
public final class TextStream extends NativeObject {
    TextStream(long pointer) {
        super(pointer, Native::textStreamFree, running -> { });
    }

    /**
     * Tell the stream what its text continues: all tokens before it, or none. With some tokenizers the text depends on it
     * if the prompt is empty, has no text (such as a start token alone), or ends within a word. The call is optional. It
     * comes before the first {@link #push}, or after {@link #finish}. The stream gives no text for these tokens.
     *
     * @throws CosException INVALID_ARGUMENT (also after a push; nothing is changed), BUSY
     */
    public void prompt(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        exclusively(stream -> {
            Native.textStreamPrompt(stream, tokens);
            return null;
        });
    }

    /**
     * End the text before the first of some strings that appears in it, such as the turn of another speaker: that is the
     * one that is complete first, and the longest of those. They may be of any length, and reach across tokens. Special
     * tokens give no text, but a stop string that is the name of one, or contains it, is found all the same. This replaces
     * the strings set before; what was given out stays.
     *
     * @param stops none of them empty; without any, no string ends the text
     * @throws CosException INVALID_ARGUMENT (an empty string, or an unpaired surrogate; the strings before stay), BUSY
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
     * Whether a stop string has ended the text, or did when that was finished. Tokens then make no more text until
     * {@link #finish}.
     */
    public boolean stopped() {
        return shared(Native::textStreamStopped);
    }

    /**
     * The text that further tokens complete, such as those of a step; possibly empty. The bytes of an unfinished character
     * are held back until it is whole, and what may become a stop string until that is certain.
     *
     * @throws CosException INVALID_ARGUMENT (no token is taken), BUSY
     */
    public String push(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        return Utf8.decode(exclusively(stream -> Native.textStreamPush(stream, tokens)));
    }

    /**
     * The rest of the text: what was held back, with U+FFFD for bytes that are no character, up to a stop string. The
     * next push starts anew, with the same stop strings, behind a prompt that is not known.
     *
     * @throws CosException BUSY
     */
    public String finish() {
        return Utf8.decode(exclusively(Native::textStreamFinish));
    }
}
