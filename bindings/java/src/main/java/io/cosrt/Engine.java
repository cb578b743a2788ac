package io.cosrt;

import java.nio.file.Path;
import java.util.Objects;

/**
 * The loaded models and how they are combined. Immutable; any number of threads may use one at once.
 *
 * <p>ONNX Runtime is loaded with the first engine of the process, and all engines share its one pool of threads.
 */
public final class Engine extends NativeObject {
    private Engine(long pointer) {
        super(pointer, Native::engineFree, running -> { }); // calls on an engine are short, but for a long text's tokens
    }

    /**
     * Make an engine from a configuration file: JSON, described at {@code cos_engine_open} in cos.h. Relative paths in it
     * are relative to its folder.
     *
     * @throws CosException CONFIG, MODEL (a file is missing or corrupt, is no language model, or the vocabularies or
     *                      tokenizers differ), RUNTIME, UNSUPPORTED (an export that could not be verified with)
     */
    public static Engine open(Path configuration) {
        return new Engine(Native.engineOpen(Utf8.encodeWithoutNul(configuration.toString())));
    }

    /**
     * Make an engine from configuration text, as {@link #open} does from a file. Relative paths in it are relative to the
     * working directory.
     *
     * @throws CosException as for {@link #open}
     */
    public static Engine fromJson(String configuration) {
        return new Engine(Native.engineNew(Utf8.encodeWithoutNul(configuration)));
    }

    /** Number of tokens of the vocabulary that the models share; tokens are 0 to this less 1. */
    public int vocabSize() {
        return shared(Native::engineVocabSize);
    }

    /** Number of models, in the order of the configuration. */
    public int modelCount() {
        return shared(Native::engineModelCount);
    }

    /** What was recognised of each model, as JSON: the members are listed at {@code cos_engine_describe} in cos.h. */
    public String describe() {
        return Utf8.decode(shared(Native::engineDescribe));
    }

    /** The same as {@link #describe} as a table for people, such as for a log. */
    public String describeTable() {
        return Utf8.decode(shared(Native::engineDescribeTable));
    }

    /**
     * What all its sessions did so far, also those that were closed: for the metrics of a server. Grows with each step that
     * ends.
     */
    public Stats stats() {
        return Stats.of(shared(Native::engineStats));
    }

    /**
     * The tokens of a text, by the tokenizer.json beside the models.
     *
     * @param addSpecial add the tokens that the tokenizer puts around a text, such as one for its start
     * @throws CosException INVALID_ARGUMENT (an unpaired surrogate), UNSUPPORTED (the models came without a tokenizer)
     */
    public int[] encode(String text, boolean addSpecial) {
        byte[] bytes = Utf8.encode(text);
        return shared(engine -> Native.engineEncode(engine, bytes, addSpecial));
    }

    /**
     * The text of tokens, without special tokens. Bytes that are no whole character become U+FFFD; to decode a sequence
     * piece by piece use {@link #newTextStream}.
     *
     * @throws CosException INVALID_ARGUMENT (a token outside the vocabulary), UNSUPPORTED (no tokenizer)
     */
    public String decode(int... tokens) {
        Objects.requireNonNull(tokens, "tokens");
        return Utf8.decode(shared(engine -> Native.engineDecode(engine, tokens)));
    }

    /** Start an empty sequence: greedy and automatic. */
    public Session newSession() {
        return newSession(SessionOptions.builder().build());
    }

    /**
     * Start an empty sequence.
     *
     * @throws CosException INVALID_ARGUMENT (names the option), RUNTIME
     */
    public Session newSession(SessionOptions options) {
        return shared(engine -> new Session(options.newSession(engine), options.combiner()));
    }

    /**
     * Start a stream of text.
     *
     * @throws CosException UNSUPPORTED (the models came without a tokenizer)
     */
    public TextStream newTextStream() {
        return shared(engine -> new TextStream(Native.textStreamNew(engine)));
    }
}
