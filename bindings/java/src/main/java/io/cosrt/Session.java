// Sessions: one sequence each.

package io.cosrt;

import java.util.Objects;

/**
 * One sequence. One thread at a time may use it; a call from another thread fails with {@link ErrorCode#BUSY}. Only
 * {@link #cancel}, {@link #stats} and {@link #close} may be called at any time. Different sessions run in parallel.
 *
 * <p>The engine may be closed before its sessions. Closing a session cancels a running step of another thread, and
 * waits for it.
 */
public final class Session extends NativeObject {
    private final Combiner combiner;
    /** What the combiner threw in a step that succeeded. The next step throws it. Null without a combiner. */
    private final Throwable[] late;

    Session(long pointer, Combiner combiner) {
        super(pointer, Native::sessionFree, Session::interrupt);
        this.combiner = combiner;
        this.late = combiner == null ? null : new Throwable[1];
    }

    private static void interrupt(long session) {
        try {
            Native.cancel(session);
        } catch (CosException poisoned) {
            // No step runs in a poisoned session.
        }
    }

    /**
     * Appends tokens to the sequence: the first prompt, or the next turn of a chat. A finished sequence goes on. The
     * next step runs the models over the tokens, so {@link #cancel} can stop a long prompt.
     *
     * @param tokens at least one
     * @throws CosException INVALID_ARGUMENT (no tokens, or a token outside the vocabulary), CONTEXT_FULL, BUSY,
     *                      POISONED; nothing is appended then
     */
    public void prompt(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        exclusively(session -> {
            Native.prompt(session, tokens);
            return null;
        });
    }

    /**
     * Advances the sequence by one round of collaborative decoding. Commits at least one token, unless the sequence is
     * finished: then it commits none, and {@link StepResult#finish} has the reason again. After {@link
     * Finish#CANCELLED}, the next step goes on behind the last committed token.
     *
     * @throws CosException INVALID_ARGUMENT (no prompt yet), NUMERIC, RUNTIME, CALLBACK (the cause is what the {@link
     *                      Combiner} threw), BUSY, POISONED, INTERNAL (poisons the session). Nothing is committed then,
     *                      and the next step tries again.
     */
    public StepResult step() {
        return exclusively(session -> {
            if (late != null && late[0] != null) {
                Throwable thrown = late[0];
                late[0] = null;
                String message = "the combiner failed at the end of the last step";
                throw new CosException(ErrorCode.CALLBACK.number(), message, thrown);
            }
            return Native.step(session, combiner, late);
        });
    }

    /**
     * Stops the running step, or the next one if none is running: it ends early with {@link Finish#CANCELLED}, and all
     * committed tokens stay. May be called from any thread at any time. Never waits for a pass. Does nothing if the
     * session is closed, because the thread that cancels cannot know whether another thread has closed it.
     *
     * @throws CosException POISONED
     */
    public void cancel() {
        try {
            shared(session -> {
                Native.cancel(session);
                return null;
            });
        } catch (IllegalStateException closed) {
            // No step runs in a closed session.
        }
    }

    /**
     * Changes the weights from the next token on, for "weighted" and "logits". May be called between steps, and before
     * the first prompt.
     *
     * @param weights one for each model
     * @throws CosException INVALID_ARGUMENT, CONTEXT_FULL (the sequence is longer than the context of a model whose
     *                      weight was 0), BUSY, POISONED; nothing changes then
     */
    public void setWeights(float... weights) {
        Objects.requireNonNull(weights, "weights");
        exclusively(session -> {
            Native.setWeights(session, weights);
            return null;
        });
    }

    /**
     * The statistics up to the end of the last call. May be called from any thread at any time.
     *
     * @throws CosException POISONED
     */
    public Stats stats() {
        return Stats.of(shared(Native::sessionStats));
    }

    /**
     * How the session decodes now, and why, as JSON: for logs, bug reports, and a look at what {@link Strategy#AUTO}
     * does. {@code cos_session_describe} in cos.h documents the members.
     *
     * @throws CosException BUSY, POISONED
     */
    public String describe() {
        return Utf8.decode(exclusively(Native::sessionDescribe));
    }
}
