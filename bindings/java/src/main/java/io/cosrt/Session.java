// Sessions: one sequence each.

package io.cosrt;

import java.lang.ref.Reference;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * One sequence. One thread at a time may use it; a call from another thread fails with {@link ErrorCode#BUSY}. Only
 * {@link #cancel}, {@link #stats} and {@link #close} may be called at any time. Different sessions run in parallel.
 *
 * <p>The engine may be closed before its sessions. Closing a session cancels a running step of another thread, and
 * waits for it.
 */
public final class Session extends NativeObject {
    private static final AtomicLong NUMBERS = new AtomicLong();

    private final Combiner combiner;
    private final Weigher weigher;
    /** The number by which the library knows the functions. */
    private final long number;
    private final int models;
    /** What a function threw in a step that succeeded. The next step throws it. */
    private Throwable late;
    private Constrainer constrainer;
    /** Those of the constrainer, for forks; or null. */
    private SessionOptions options;

    private Session(long pointer, Combiner combiner, Weigher weigher, long number, int models) {
        super(pointer, Native::sessionFree, Session::interrupt);
        this.combiner = combiner;
        this.weigher = weigher;
        this.number = number;
        this.models = models;
    }

    static Session make(long engine, SessionOptions options) {
        long number = NUMBERS.incrementAndGet();
        Combiner combiner = options.combiner();
        long pointer = Native.sessionNew(engine, options.seed(), options.arrays(), number, combiner != null,
                options.constrainer() != null, options.weigher() != null);
        Session session = new Session(pointer, combiner, options.weigher(), number, Native.engineModelCount(engine));
        session.constrainBy(options);
        return session;
    }

    static Session restore(long engine, byte[] saved) {
        long pointer = Native.sessionRestore(engine, saved);
        return new Session(pointer, null, null, NUMBERS.incrementAndGet(), Native.engineModelCount(engine));
    }

    private void constrainBy(SessionOptions options) {
        constrainer = options.constrainer();
        this.options = constrainer == null ? null : options;
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
     *                      Combiner}, {@link Constrainer} or {@link Weigher} threw), BUSY, POISONED, INTERNAL
     *                      (poisons the session). Nothing is committed then, and the next step tries again.
     */
    public StepResult step() {
        return step(null);
    }

    /**
     * Appends tokens as {@link #prompt} does, and returns them with their log-probabilities under the combined
     * distribution: of a prompt, or of an answer that is to be judged. The options say which log-probabilities there
     * are; controls have no effect here. The first token of a sequence has NaN, and no alternatives.
     *
     * <p>It takes as long as a step with such a prompt. If it is cancelled, it returns {@link Finish#CANCELLED} and no
     * tokens, and nothing is appended.
     *
     * @param tokens at least one
     * @throws CosException INVALID_ARGUMENT (also if the options do not ask for log-probabilities), CONTEXT_FULL, and
     *                      those of {@link #step}; nothing is appended then
     */
    public StepResult score(int... tokens) {
        return step(Objects.requireNonNull(tokens, "tokens"));
    }

    /** Steps, or scores tokens if they are not null. */
    private StepResult step(int[] scored) {
        return exclusively(session -> {
            refuseLate();
            Throwable[] thrown = new Throwable[1];
            Object[] outcome = new Object[1];
            Native.step(false, scored, new long[] {session}, new long[] {number}, new int[] {models},
                    new Combiner[] {combiner}, new Constrainer[] {constrainer}, new Weigher[] {weigher}, thrown,
                    outcome);
            if (outcome[0] instanceof StepResult result) {
                late = thrown[0];
                return result;
            }
            throw Native.failure(outcome[0]);
        });
    }

    /**
     * Advances many sessions by one pass of each model, on the calling thread: for servers where one thread drives all.
     * Threads that call {@link #step} at the same time share passes by themselves.
     *
     * <p>The sessions may belong to several engines. Each has its own news, in their order, and an error of one hurts
     * no other: INVALID_ARGUMENT for null and for a session given twice, BUSY for one in use on another thread, {@link
     * IllegalStateException} for one that is closed, and all errors of {@link #step}.
     */
    public static List<News> stepMany(List<Session> sessions) {
        News[] news = new News[sessions.size()];
        Map<Session, Integer> begun = new IdentityHashMap<>();
        List<Session> ready = new ArrayList<>();
        long[] pointers = new long[news.length];
        try {
            int index = 0;
            for (Session session : sessions) {
                try {
                    pointers[ready.size()] = begin(session, "sessions", index, begun);
                    session.refuseLate();
                    ready.add(session);
                } catch (CosException | IllegalStateException error) {
                    news[index] = new News(null, error);
                }
                index++;
            }
            call(ready.toArray(Session[]::new), pointers, begun, news);
        } finally {
            begun.forEach(END);
            Reference.reachabilityFence(sessions);
        }
        return List.of(news);
    }

    /** Throws what a function threw in the last step, once. */
    private void refuseLate() {
        Throwable thrown = late;
        late = null;
        if (thrown != null) {
            String message = "a function of the session failed at the end of the last step";
            throw new CosException(ErrorCode.CALLBACK, message, thrown);
        }
    }

    /** Steps sessions, the first of {@code pointers}, and writes the news of each to its index. */
    private static void call(Session[] sessions, long[] pointers, Map<Session, Integer> indices, News[] news) {
        if (sessions.length == 0) {
            return;
        }
        long[] numbers = Stream.of(sessions).mapToLong(session -> session.number).toArray();
        int[] models = Stream.of(sessions).mapToInt(session -> session.models).toArray();
        Combiner[] combiners = Stream.of(sessions).map(session -> session.combiner).toArray(Combiner[]::new);
        Throwable[] thrown = new Throwable[sessions.length];
        Object[] outcomes = new Object[sessions.length];
        Constrainer[] constrainers =
                Stream.of(sessions).map(session -> session.constrainer).toArray(Constrainer[]::new);
        Weigher[] weighers = Stream.of(sessions).map(session -> session.weigher).toArray(Weigher[]::new);
        long[] own = Arrays.copyOf(pointers, sessions.length);
        Native.step(true, null, own, numbers, models, combiners, constrainers, weighers, thrown, outcomes);
        for (int i = 0; i < sessions.length; i++) {
            if (outcomes[i] instanceof StepResult result) {
                sessions[i].late = thrown[i];
                news[indices.get(sessions[i])] = new News(result, null);
            } else {
                news[indices.get(sessions[i])] = new News(null, Native.failure(outcomes[i]));
            }
        }
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
     * Shares computed tokens with sessions of the same scope only, such as those of one tenant. To be called before the
     * first prompt.
     *
     * @param scope any text without NUL; the empty one is no scope
     * @throws CosException INVALID_ARGUMENT (also if the session has tokens), BUSY, POISONED
     */
    public void setScope(String scope) {
        byte[] text = Utf8.encode(scope);
        if (scope.indexOf(0) >= 0) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT, "the scope has a NUL inside; remove it");
        }
        exclusively(session -> {
            Native.setScope(session, text);
            return null;
        });
    }

    /**
     * Copies the session in its present state, with another seed. It costs no pass, and both share what was computed.
     *
     * @throws CosException UNSUPPORTED (the session has a {@link Combiner} or a {@link Weigher}, which both would use
     *                      at the same time), RUNTIME, BUSY, POISONED
     */
    public Session fork(long seed) {
        if (combiner != null) {
            throw new CosException(ErrorCode.UNSUPPORTED, "a session with a combiner has no fork");
        }
        if (weigher != null) {
            throw new CosException(ErrorCode.UNSUPPORTED, "a session with a weigher has no fork");
        }
        return exclusively(session -> {
            Session fork = new Session(Native.sessionFork(session, seed), null, null, NUMBERS.incrementAndGet(),
                    models);
            if (options == null) {
                return fork;
            }
            try {
                fork.setOptions(options.toBuilder().seed(seed).build()); // with a number of its own
                return fork;
            } catch (RuntimeException | Error error) {
                fork.close();
                throw error;
            }
        });
    }

    /**
     * Decodes by other options from the next token on: what is decoded may change, and how may not. So strategy,
     * targets, seed, proposal lengths, routes and priority must be the old ones (the seed of a fork is its own).
     * Weights, the combiner and the weigher are not read. All other options count. A text that {@link
     * SessionOptions.Builder#maxTokens} or a constraint has ended goes on if the new options allow that.
     *
     * @param options such as {@link SessionOptions#toBuilder} of the old ones, with changes
     * @throws CosException INVALID_ARGUMENT (the message names the option), UNSUPPORTED, BUSY, POISONED; nothing
     *                      changes then
     */
    public void setOptions(SessionOptions options) {
        Objects.requireNonNull(options, "options");
        exclusively(session -> {
            boolean constrains = options.constrainer() != null;
            Native.sessionSetOptions(session, options.seed(), options.arrays(), number, constrains);
            constrainBy(options);
            return null;
        });
    }

    /**
     * The session as bytes: its tokens, options and random numbers. {@link Engine#restore} makes a session of them.
     * They hold the prompt and the text.
     *
     * @throws CosException UNSUPPORTED (the session has a function of the caller), BUSY, POISONED
     */
    public byte[] save() {
        return exclusively(Native::sessionSave);
    }

    /**
     * Decodes continuations of the session in common passes, and returns the one whose tokens have the highest mean
     * log-probability. Its options need logProbabilities, a temperature above 0, and an end such as maxTokens. The
     * session stays as it is.
     *
     * @param count how many; at least 1
     * @throws CosException INVALID_ARGUMENT, and those of {@link #fork} and {@link #step}
     */
    public Best bestOf(int count, long seed) {
        if (count < 1) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT, "count is " + count + "; it must be 1 or more");
        }
        List<Continuation> all = new ArrayList<>();
        try {
            for (int index = 0; index < count; index++) {
                all.add(new Continuation(fork(seed))); // equal seeds give each fork numbers of its own
            }
            all.get(0).add(all.get(0).fork.step()); // computes the prompt, and the others find it
            List<Continuation> open = all;
            while (!(open = open.stream().filter(one -> one.finish == Finish.NONE).toList()).isEmpty()) {
                List<News> news = stepMany(open.stream().map(one -> one.fork).toList());
                for (int index = 0; index < news.size(); index++) {
                    if (news.get(index).error() != null) {
                        throw news.get(index).error();
                    }
                    open.get(index).add(news.get(index).step());
                }
            }
        } finally {
            all.forEach(one -> one.fork.close());
        }
        return all.stream().map(Continuation::best).max(Comparator.comparingDouble(Best::logProbability)).orElseThrow();
    }

    /** A fork that {@link #bestOf} decodes. */
    private static final class Continuation {
        final Session fork;
        final List<StepResult> steps = new ArrayList<>();
        Finish finish = Finish.NONE;

        Continuation(Session fork) {
            this.fork = fork;
        }

        void add(StepResult step) {
            if (step.tokens().length > 0 && step.logProbabilities() == null) {
                String message = "logProbabilities is off; set that option of the session";
                throw new CosException(ErrorCode.INVALID_ARGUMENT, message);
            }
            if (step.tokens().length > 0) {
                steps.add(step);
            }
            finish = step.finish();
        }

        Best best() {
            int[] tokens = steps.stream().flatMapToInt(step -> IntStream.of(step.tokens())).toArray();
            double sum = 0;
            for (StepResult step : steps) {
                for (float value : step.logProbabilities()) {
                    sum += value;
                }
            }
            return new Best(tokens, finish, sum / Math.max(tokens.length, 1));
        }
    }

    /**
     * Forgets all tokens from index {@code length} on, those of prompts too. The sequence goes on, also if it had
     * finished.
     *
     * @throws CosException INVALID_ARGUMENT (the sequence is shorter), BUSY, POISONED
     */
    public void rewind(long length) {
        exclusively(session -> {
            Native.sessionRewind(session, length);
            return null;
        });
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
