// Conversion between strings and UTF-8.

package io.cosrt;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;

/** Converts between strings and UTF-8, which the C interface uses. */
final class Utf8 {
    private Utf8() {}

    /** Encodes a text. Unlike {@link String#getBytes}, refuses an unpaired surrogate instead of replacing it. */
    static byte[] encode(String text) {
        try {
            ByteBuffer buffer = StandardCharsets.UTF_8.newEncoder().encode(CharBuffer.wrap(text));
            byte[] bytes = new byte[buffer.remaining()];
            buffer.get(bytes);
            return bytes;
        } catch (CharacterCodingException e) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT,
                    "the text has an unpaired surrogate, which UTF-8 cannot express", e);
        }
    }

    /** Encodes a text that ends at its first NUL in C. A NUL is refused, because the text behind it would be lost. */
    static byte[] encodeWithoutNul(String text) {
        if (text.indexOf('\0') >= 0) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT, "the text has a NUL character; remove it");
        }
        return encode(text);
    }

    static String decode(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }
}
