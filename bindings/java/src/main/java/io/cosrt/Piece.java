// What a driven request has to send.

package io.cosrt;

import java.util.Arrays;

/**
 * What a {@link DrivenRequest} request has to send. The array is a copy that the caller owns.
 *
 * @param status how the request stands
 * @param text   as {@link Request#answer} has it, of all steps since the last piece
 */
public record Piece(RequestStatus status, byte[] text) {
    /** Compares the elements of the array. */
    @Override
    public boolean equals(Object other) {
        return other instanceof Piece that && status.equals(that.status) && Arrays.equals(text, that.text);
    }

    @Override
    public int hashCode() {
        return 31 * status.hashCode() + Arrays.hashCode(text);
    }
}
