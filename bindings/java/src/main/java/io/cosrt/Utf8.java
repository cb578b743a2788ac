package io.cosrt;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;

/** Text as the C interface takes and gives it. */
final class Utf8 {
    private Utf8() {}

    /** Unlike {@link String#getBytes}, refuses what is no text (a surrogate without its other half) instead of changing it. */
    static byte[] encode(String text) {
        try {
            ByteBuffer buffer = StandardCharsets.UTF_8.newEncoder().encode(CharBuffer.wrap(text));
            byte[] bytes = new byte[buffer.remaining()];
            buffer.get(bytes);
            return bytes;
        } catch (CharacterCodingException e) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT.number(),
                    "the text has an unpaired surrogate, and so no form in UTF-8", e);
        }
    }

    /** For what ends at the first NUL in C: text behind one would be lost. */
    static byte[] encodeWithoutNul(String text) {
        if (text.indexOf('\0') >= 0) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT, "the text has a NUL character");
        }
        return encode(text);
    }

    static String decode(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }
}
