// The library itself.

package io.cosrt;

/** The library itself. */
public final class Cos {
    private Cos() {}

    /** The version of the native library, such as "0.1.0". */
    public static String version() {
        return Utf8.decode(Native.version());
    }
}
