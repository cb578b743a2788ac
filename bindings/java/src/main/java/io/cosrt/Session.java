package io.cosrt;

import java.util.Objects;

/**
 * One sequence. One thread at a time may use it, any thread; a second one at the same moment gets {@link ErrorCode#BUSY},
 * except for {@link #cancel}, {@link #stats} and {@link #close}. Different sessions run in parallel.
 *
 * <p>Closing the engine before does no harm. Closing a session while another thread steps cancels the step and waits for it.
 */
public final class Session extends NativeObject {
    private final Combiner combiner;
    /** What the combiner threw in a step that ended well; the next step throws it. Null without a combiner. */
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
            // Then no step runs on.
        }
    }

    /**
     * Append tokens to the sequence: its prompt, or the next turn of a chat between steps. A finished sequence goes on. The
     * models see the tokens in the next step, so that {@link #cancel} can stop a long prompt.
     *
     * @param tokens at least one
     * @throws CosException INVALID_ARGUMENT (no tokens, or one outside the vocabulary), CONTEXT_FULL, BUSY, POISONED;
     *                      nothing is appended then
     */
    public void prompt(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        exclusively(session -> {
            Native.prompt(session, tokens);
            return null;
        });
    }

    /**
     * Advance the sequence by one round of collaborative decoding. Commits at least one token unless the sequence is
     * finished: then there are none, and {@link StepResult#finish} says why again. After {@link Finish#CANCELLED} the next
     * step goes on where the last token was committed.
     *
     * @throws CosException INVALID_ARGUMENT (no prompt yet), NUMERIC, RUNTIME, CALLBACK (the cause is what the
     *                      {@link Combiner} threw), BUSY, POISONED, INTERNAL (poisons the session). Nothing is committed
     *                      then, and the next step tries again.
     */
    public StepResult step() {
        return exclusively(session -> {
            if (late != null && late[0] != null) {
                Throwable thrown = late[0];
                late[0] = null;
                throw new CosException(ErrorCode.CALLBACK.number(), "the combiner failed at the end of the last step", thrown);
            }
            return Native.step(session, combiner, late);
        });
    }

    /**
     * Stop the running step, or else the next one: it ends early with {@link Finish#CANCELLED}. Nothing that was committed
     * is lost. May be called from any thread at any time; never waits for a running pass. Does nothing if the session is
     * closed, for the thread that cancels cannot know what the one that decodes has come to.
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
            // Nothing runs then.
        }
    }

    /**
     * Decode with other weights from the next token on, for "weighted" and "logits". Between steps, and before the first
     * prompt too.
     *
     * @param weights one for each model
     * @throws CosException INVALID_ARGUMENT, CONTEXT_FULL (the sequence is longer than the context of a model whose weight
     *                      was 0), BUSY, POISONED; nothing changes then
     */
    public void setWeights(float... weights) {
        Objects.requireNonNull(weights, "weights");
        exclusively(session -> {
            Native.setWeights(session, weights);
            return null;
        });
    }

    /**
     * What the session did so far, up to the last call that ended. May be called from any thread at any time.
     *
     * @throws CosException POISONED
     */
    public Stats stats() {
        return Stats.of(shared(Native::sessionStats));
    }

    /**
     * How the session decodes now, and why, as JSON: for a log, a bug report, or a look at what {@link Strategy#AUTO} does
     * and gains. The members are listed at {@code cos_session_describe} in cos.h.
     *
     * @throws CosException BUSY, POISONED
     */
    public String describe() {
        return Utf8.decode(exclusively(Native::sessionDescribe));
    }
}
