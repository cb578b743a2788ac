// Engines: the loaded models.

package io.cosrt;

import java.nio.file.Path;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * The loaded models and how they are combined. Immutable; any number of threads may use one at once.
 *
 * <p>The first engine of the process loads ONNX Runtime, and all engines share its thread pool.
 */
public final class Engine extends NativeObject {
    /** COS_ENCODE_* of cos.h. */
    private static final int ADD_SPECIAL = 1;
    private static final int PLAIN = 2;

    private final AtomicBoolean closing; // ends prepare, the only long call on an engine
    private final Set<Thread> preparing = ConcurrentHashMap.newKeySet();

    private Engine(long pointer) {
        this(pointer, new AtomicBoolean());
    }

    private Engine(long pointer, AtomicBoolean closing) {
        super(pointer, Native::engineFree, running -> closing.set(true));
        this.closing = closing;
    }

    /**
     * Makes an engine from a configuration file. It is JSON, which {@code cos_engine_open} in cos.h documents. Relative
     * paths in it are relative to its folder.
     *
     * @throws CosException CONFIG, MODEL (a file is missing or corrupt, a model is not a language model, or the
     *                      vocabularies or tokenizers differ), RUNTIME, UNSUPPORTED (drafts could not be verified with
     *                      an export)
     */
    public static Engine open(Path configuration) {
        return new Engine(Native.engineOpen(Utf8.encodeWithoutNul(configuration.toString())));
    }

    /**
     * Makes an engine from the text of a configuration. Relative paths in it are relative to the working directory.
     *
     * @throws CosException as for {@link #open}
     */
    public static Engine fromJson(String configuration) {
        return new Engine(Native.engineNew(Utf8.encodeWithoutNul(configuration)));
    }

    /** Prepares for load with the defaults of {@link PrepareOptions}. */
    public double prepare() {
        return prepare(PrepareOptions.builder().build());
    }

    /**
     * Prepares for load, before users wait: runs the passes that sessions will need most. Else the first sessions are
     * slow, above all on a GPU. It counts in no statistics, and sessions may decode meanwhile. {@link #close} ends it
     * early. {@code cos_engine_prepare} in cos.h says more.
     *
     * @return the share that was done, also if the time was over or the progress function has stopped it
     * @throws CosException INVALID_ARGUMENT (the message names the option), CALLBACK (the progress function has thrown
     *                      the cause), RUNTIME, NUMERIC
     */
    public double prepare(PrepareOptions options) {
        Thread thread = Thread.currentThread();
        boolean isFirst = preparing.add(thread);
        try {
            return shared(engine -> options.prepare(engine, closing));
        } finally {
            if (isFirst) {
                preparing.remove(thread);
            }
        }
    }

    @Override
    public void close() {
        if (preparing.contains(Thread.currentThread())) { // it would wait for itself
            throw new IllegalStateException("a progress function cannot close its engine");
        }
        super.close();
    }

    /** The number of tokens in the vocabulary that all models share. Tokens are 0 to this number - 1. */
    public int vocabSize() {
        return shared(Native::engineVocabSize);
    }

    /** The number of models, look-ups included. */
    public int modelCount() {
        return shared(Native::engineModelCount);
    }

    /** What was recognised of each model, as JSON. {@code cos_engine_describe} in cos.h documents the members. */
    public String describe() {
        return Utf8.decode(shared(Native::engineDescribe));
    }

    /** The content of {@link #describe} as a table for people. */
    public String describeTable() {
        return Utf8.decode(shared(Native::engineDescribeTable));
    }

    /**
     * The sums over all its sessions, closed ones included. They grow at the end of each step.
     */
    public Stats stats() {
        return Stats.of(shared(Native::engineStats));
    }

    /**
     * Its metrics as text that Prometheus reads: counters, and histograms of what users wait for.
     * {@code cos_engine_metrics} in cos.h lists them. For a server's answer to GET /metrics, of the type
     * {@code text/plain; version=0.0.4}. A server may append lines of its own.
     */
    public String metrics() {
        return Utf8.decode(shared(Native::engineMetrics));
    }

    /**
     * Encodes a text as tokens, with the tokenizer.json beside the models.
     *
     * @param addSpecial whether to add the tokens that the tokenizer puts around a text, such as a start token
     * @throws CosException INVALID_ARGUMENT (an unpaired surrogate), UNSUPPORTED (no model has a tokenizer.json)
     */
    public int[] encode(String text, boolean addSpecial) {
        return encode(text, addSpecial ? ADD_SPECIAL : 0);
    }

    /**
     * Encodes a text as {@link #encode} does, but names of special tokens in it, such as {@code <|im_end|>}, become
     * tokens of plain text. For what users say.
     *
     * @throws CosException INVALID_ARGUMENT (also if the tokenizer cannot do so), UNSUPPORTED
     */
    public int[] encodePlain(String text, boolean addSpecial) {
        return encode(text, addSpecial ? ADD_SPECIAL | PLAIN : PLAIN);
    }

    private int[] encode(String text, int flags) {
        byte[] bytes = Utf8.encode(text);
        return shared(engine -> Native.engineEncode(engine, bytes, flags));
    }

    /**
     * Renders messages to text with the chat template beside the models. For a prompt, use {@link #chatEncode}.
     *
     * @param messages JSON: an array of messages, or an object that has tools, documents and variables too;
     *          {@code cos_engine_chat} in cos.h says which
     * @param addGenerationPrompt whether the text ends with what begins an answer
     * @throws CosException INVALID_ARGUMENT (also if the template refuses the messages), UNSUPPORTED (there is no chat
     *          template)
     */
    public String chat(String messages, boolean addGenerationPrompt) {
        byte[] json = Utf8.encode(messages);
        return Utf8.decode((byte[]) shared(engine -> Native.engineChat(engine, json, addGenerationPrompt, false)));
    }

    /**
     * Renders messages as {@link #chat} does, and encodes the text. Names of control tokens in messages become tokens
     * of plain text, so only the template writes control tokens. The tokens are the whole prompt.
     *
     * @throws CosException as for {@link #chat}, and INVALID_ARGUMENT if a control token in a message cannot be plain
     *          text
     */
    public int[] chatEncode(String messages, boolean addGenerationPrompt) {
        byte[] json = Utf8.encode(messages);
        return (int[]) shared(engine -> Native.engineChat(engine, json, addGenerationPrompt, true));
    }

    /**
     * Decodes tokens to text. Special tokens give no text. Bytes that do not form a character become U+FFFD. To decode
     * a sequence piece by piece, use {@link #newTextStream}.
     *
     * @throws CosException INVALID_ARGUMENT (a token outside the vocabulary), UNSUPPORTED (no model has a
     *          tokenizer.json)
     */
    public String decode(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        return Utf8.decode(shared(engine -> Native.engineDecode(engine, tokens, false)));
    }

    /**
     * Decodes tokens as {@link #decode} does, but special tokens give their names.
     *
     * @throws CosException INVALID_ARGUMENT (a token outside the vocabulary), UNSUPPORTED (no model has a
     *          tokenizer.json)
     */
    public String decodeSpecial(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        return Utf8.decode(shared(engine -> Native.engineDecode(engine, tokens, true)));
    }

    /** Starts an empty sequence: greedy, with an automatic strategy. */
    public Session newSession() {
        return newSession(SessionOptions.builder().build());
    }

    /**
     * Starts an empty sequence.
     *
     * @throws CosException INVALID_ARGUMENT (the message names the option), UNSUPPORTED (a constraint without a
     *                      tokenizer), RUNTIME
     */
    public Session newSession(SessionOptions options) {
        return shared(engine -> Session.make(engine, options));
    }

    /**
     * Makes a session of the bytes of {@link Session#save}, in this or in another process. The engine must have the
     * same models, and combine them in the same way. The first step computes all tokens, as after a prompt.
     *
     * @throws CosException INVALID_ARGUMENT (the bytes are damaged, or the engine differs), UNSUPPORTED (another
     *                      version of the format), CONTEXT_FULL, RUNTIME
     */
    public Session restore(byte[] saved) {
        Objects.requireNonNull(saved, "saved");
        return shared(engine -> Session.restore(engine, saved));
    }

    /**
     * Checks the body of a request of OpenAI's protocol, and starts what it asks for. Nothing is decoded yet: all
     * faults of a body are found here, before any part of an answer is sent. docs/requests.md lists the members of a
     * body.
     *
     * @param body JSON in UTF-8
     * @throws CosException INVALID_ARGUMENT (the message names the member), UNSUPPORTED, NOT_FOUND (another model),
     *                      CONTEXT_FULL (a prompt is too long), RUNTIME. {@link CosException#httpStatus} and {@link
     *                      CosException#json} answer the client.
     */
    public Request newRequest(byte[] body, RequestOptions options) {
        Objects.requireNonNull(body, "body");
        return shared(engine -> Request.make(engine, body, options));
    }

    /**
     * Starts a request as {@link #newRequest(byte[], RequestOptions)} does.
     *
     * @throws CosException as there, and INVALID_ARGUMENT for an unpaired surrogate
     */
    public Request newRequest(String body, RequestOptions options) {
        return newRequest(Utf8.encode(body), options);
    }

    /**
     * Starts a stream of text.
     *
     * @throws CosException UNSUPPORTED (no model has a tokenizer.json)
     */
    public TextStream newTextStream() {
        return shared(engine -> new TextStream(Native.textStreamNew(engine)));
    }
}
