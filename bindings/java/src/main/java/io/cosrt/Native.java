// The native methods, and the methods that C calls.

package io.cosrt;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.function.DoublePredicate;
import java.util.stream.IntStream;

/**
 * One native method for each function of the C interface, and the methods that {@code native/cosjni.c} calls. Only this
 * class and {@link NativeObject} handle pointers, as longs.
 */
final class Native {
    static {
        NativeLibrary.load();
    }

    private Native() {}

    static native byte[] version();

    static native long engineOpen(byte[] path);

    static native long engineNew(byte[] json);

    static native void engineFree(long engine);

    static native int engineVocabSize(long engine);

    static native int engineModelCount(long engine);

    static native byte[] engineDescribe(long engine);

    static native byte[] engineDescribeTable(long engine);

    static native long[] engineStats(long engine);

    static native byte[] engineMetrics(long engine);

    /** {@code tokens} and {@code sessions} are unsigned in C. */
    static native double enginePrepare(long engine, int sessions, int tokens, double seconds, DoublePredicate progress);

    static native int[] engineEncode(long engine, byte[] text, int flags);

    /** The text of messages in UTF-8, or with {@code encodes} their tokens. */
    static native Object engineChat(long engine, byte[] messages, boolean addGenerationPrompt, boolean encodes);

    static native byte[] engineDecode(long engine, int[] tokens, boolean special);

    /**
     * @param arrays {@link SessionOptions#arrays}
     * @param number that of the session, by which its functions are found
     */
    static native long sessionNew(long engine, long seed, Object[] arrays, long number, boolean combines,
            boolean constrains, boolean weighs);

    static native void sessionSetOptions(long session, long seed, Object[] arrays, long number, boolean constrains);

    static native byte[] sessionSave(long session);

    static native long sessionRestore(long engine, byte[] saved);

    static native void sessionFree(long session);

    static native void prompt(long session, int[] tokens);

    static native void setScope(long session, byte[] scope);

    static native long sessionFork(long session, long seed);

    static native void sessionRewind(long session, long length);

    static native void setWeights(long session, float[] weights);

    /**
     * Steps sessions. {@code outcomes} gets a {@link StepResult} or an exception of each, and {@code thrown} what its
     * functions threw, even if its step succeeds nevertheless.
     *
     * @param many   whether to call {@code cos_step_many}, rather than {@code cos_step} with a single session
     * @param scored tokens to call {@code cos_session_score} with a single session, or null
     * @param models how many models each has
     */
    static native void step(boolean many, int[] scored, long[] sessions, long[] numbers, int[] models,
            Combiner[] combiners, Constrainer[] constrainers, Weigher[] weighers, Throwable[] thrown,
            Object[] outcomes);

    static native void cancel(long session);

    static native long[] sessionStats(long session);

    static native byte[] sessionDescribe(long session);

    static native long textStreamNew(long engine);

    static native void textStreamPrompt(long stream, int[] tokens);

    static native void textStreamShowSpecial(long stream, boolean show);

    static native void textStreamSetStops(long stream, byte[] text, int[] lengths);

    static native boolean textStreamStopped(long stream);

    static native byte[] textStreamPush(long stream, int[] tokens);

    static native byte[] textStreamFinish(long stream);

    static native void textStreamFree(long stream);

    /**
     * @param model          in UTF-8, or null
     * @param maxChoices     unsigned in C, as are the other limits
     */
    static native long requestNew(long engine, byte[] body, byte[] model, int endpoint, int maxChoices,
            int maxPromptTokens, int maxTokens);

    static native void requestFree(long request);

    static native int requestChoices(long request);

    /** Steps requests. {@code outcomes} gets a {@link RequestStatus} or an exception of each. */
    static native void requestStep(boolean many, long[] requests, Object[] outcomes);

    static native RequestStatus requestStatus(long request);

    static native byte[] requestAnswer(long request);

    static native ChoiceNews requestChoice(long request, int choice, int models);

    static native void requestCancel(long request);

    /** The exception of a step. An error, such as having no memory for the result, is thrown at once. */
    static RuntimeException failure(Object outcome) {
        if (outcome instanceof Error error) {
            throw error;
        }
        return (RuntimeException) outcome;
    }

    // Called from C.

    /** {@code json} is null if the error is not the library's. */
    private static void failed(int code, byte[] message, Throwable cause, int status, byte[] json) {
        if (json == null) {
            throw new CosException(ErrorCode.of(code), Utf8.decode(message), cause);
        }
        throw new CosException(code, Utf8.decode(message), cause, status, Utf8.decode(json));
    }

    private static RequestStatus requestStepped(int state, boolean streams, long promptTokens, long completionTokens) {
        return new RequestStatus(RequestState.of(state), streams, promptTokens, completionTokens);
    }

    private static ChoiceNews choiceNews(byte[] text, StepResult step) {
        return new ChoiceNews(Utf8.decode(text), step.tokens(), step.logProbabilities(), step.finish(),
                step.alternatives(), step.modelLogProbabilities(), step.origins());
    }

    /** The last arrays have a row for each token, and are null if they were not asked for. */
    private static StepResult stepped(int[] tokens, float[] logProbabilities, int finish, int[] topTokens,
            float[] topLogProbabilities, float[] modelLogProbabilities, int[] origins) {
        List<List<Alternative>> alternatives = List.of();
        if (topTokens != null) {
            int top = topTokens.length / tokens.length;
            alternatives = new ArrayList<>();
            for (int row = 0; row < tokens.length; row++) {
                alternatives.add(IntStream.range(row * top, (row + 1) * top)
                        .filter(index -> topTokens[index] >= 0) // -1 where fewer tokens are possible
                        .mapToObj(index -> new Alternative(topTokens[index], topLogProbabilities[index])).toList());
            }
        }
        float[][] ofModels = null;
        if (modelLogProbabilities != null) {
            int models = modelLogProbabilities.length / tokens.length;
            ofModels = new float[tokens.length][];
            for (int row = 0; row < tokens.length; row++) {
                ofModels[row] = Arrays.copyOfRange(modelLogProbabilities, row * models, (row + 1) * models);
            }
        }
        List<Origin> ways = origins == null ? List.of() : IntStream.range(0, tokens.length)
                .mapToObj(index -> Origin.of(origins[2 * index], origins[2 * index + 1])).toList();
        return new StepResult(tokens, logProbabilities, Finish.of(finish), alternatives, ofModels, ways);
    }

    private static void combine(Combiner combiner, ByteBuffer[] rows, ByteBuffer scores) throws Exception {
        FloatBuffer[] logits = new FloatBuffer[rows.length];
        for (int model = 0; model < rows.length; model++) {
            logits[model] = rows[model] == null ? null : floats(rows[model].asReadOnlyBuffer());
        }
        List<FloatBuffer> view = Collections.unmodifiableList(Arrays.asList(logits)); // List.of refuses null
        combiner.combine(view, floats(scores));
    }

    private static void constrain(Constrainer constrainer, ByteBuffer tokens, int kept, long number, ByteBuffer mask)
            throws Exception {
        constrainer.constrain(new Constrainer.Text(ints(tokens.asReadOnlyBuffer()), kept, number), ints(mask));
    }

    private static void weigh(Weigher weigher, ByteBuffer tokens, float[] confidences, float[] entropies, int[] best,
            ByteBuffer weights) throws Exception {
        List<ModelSummary> models = IntStream.range(0, best.length)
                .mapToObj(model -> new ModelSummary(confidences[model], entropies[model], best[model])).toList();
        weigher.weigh(ints(tokens.asReadOnlyBuffer()), models, floats(weights));
    }

    private static boolean progress(DoublePredicate progress, double share) {
        return progress.test(share);
    }

    private static IntBuffer ints(ByteBuffer bytes) {
        return bytes.order(ByteOrder.nativeOrder()).asIntBuffer();
    }

    private static FloatBuffer floats(ByteBuffer bytes) {
        return bytes.order(ByteOrder.nativeOrder()).asFloatBuffer();
    }
}
