// Tests functions that weigh the models of a position, and scores of given tokens.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

class WeigherTest {
    private static Engine engine;

    @BeforeAll
    static void open() {
        engine = Engines.weighted();
    }

    @AfterAll
    static void close() {
        engine.close();
    }

    private static SessionOptions.Builder options() {
        return SessionOptions.builder().stopTokens().maxTokens(8);
    }

    private static CosException refused(ErrorCode code, Executable call) {
        CosException error = assertThrows(CosException.class, call);
        assertEquals(code, error.code(), error.getMessage());
        return error;
    }

    @Test
    void allWeightOnOneModelGivesItsText() {
        for (int only = 0; only < 2; only++) {
            float[] weights = {1 - only, only};
            Weigher weigher = (tokens, models, given) -> {
                assertEquals(Engines.PROMPT[0], tokens.get(0));
                assertTrue(tokens.isReadOnly() && tokens.remaining() >= Engines.PROMPT.length);
                assertEquals(2, models.size());
                for (ModelSummary model : models) {
                    assertTrue(model.confidence() > 0 && model.confidence() <= 1 && model.entropy() >= 0);
                    assertTrue(model.best() >= 0 && model.best() < 96);
                }
                assertEquals(1, given.get(0) + given.get(1));
                given.put(weights);
            };
            List<Integer> expected = Engines.decode(engine, options().weights(weights).build());
            assertEquals(expected, Engines.decode(engine, options().weigher(weigher).build()));
            try (Session session = engine.newSession(options().weigher(weigher).build())) {
                session.prompt(Engines.PROMPT);
                refused(ErrorCode.UNSUPPORTED, () -> session.fork(1));
                refused(ErrorCode.UNSUPPORTED, session::save);
                session.setOptions(options().build()); // the function stays
                List<Integer> tokens = new ArrayList<>();
                while (tokens.size() < 8) {
                    for (int token : Session.stepMany(List.of(session)).get(0).step().tokens()) {
                        tokens.add(token);
                    }
                }
                assertEquals(expected, tokens);
            }
        }
    }

    @Test
    void whatAWeigherThrowsIsTheCause() {
        Exception mine = new Exception("mine");
        AtomicBoolean fails = new AtomicBoolean(true);
        Weigher weigher = (tokens, models, weights) -> {
            if (fails.get()) {
                throw mine;
            }
        };
        try (Session session = engine.newSession(options().weigher(weigher).build())) {
            session.prompt(Engines.PROMPT);
            assertSame(mine, refused(ErrorCode.CALLBACK, session::step).getCause());
            fails.set(false);
            assertTrue(session.step().tokens().length > 0);
        }
        Combiner combiner = (logits, scores) -> {};
        refused(ErrorCode.INVALID_ARGUMENT,
                () -> engine.newSession(options().weigher(weigher).combiner(combiner).build()));
    }

    /** The log-probabilities of a text are those of the steps that wrote it. */
    @Test
    void tokensAreScored() {
        SessionOptions options = options().logProbabilities(true).topLogProbabilities(2).modelLogProbabilities(true)
                .build();
        int[] tokens = new int[8];
        float[] expected = new float[8];
        try (Session session = engine.newSession(options)) {
            session.prompt(Engines.PROMPT);
            for (int count = 0; count < tokens.length;) {
                StepResult step = session.step();
                System.arraycopy(step.tokens(), 0, tokens, count, step.tokens().length);
                System.arraycopy(step.logProbabilities(), 0, expected, count, step.tokens().length);
                count += step.tokens().length;
            }
        }
        try (Session session = engine.newSession(options)) {
            StepResult prompt = session.score(Engines.PROMPT);
            assertArrayEquals(Engines.PROMPT, prompt.tokens());
            for (int index = 0; index < Engines.PROMPT.length; index++) {
                float value = prompt.logProbabilities()[index];
                assertTrue(index == 0 ? Float.isNaN(value) : Float.isFinite(value));
                assertEquals(index == 0 ? 0 : 2, prompt.alternatives().get(index).size());
            }
            session.cancel();
            assertEquals(Finish.CANCELLED, session.score(tokens).finish());
            StepResult answer = session.score(tokens); // nothing was appended before
            assertArrayEquals(tokens, answer.tokens());
            assertArrayEquals(expected, answer.logProbabilities(), 1e-4f);
            assertEquals(2, answer.modelLogProbabilities()[7].length);
            refused(ErrorCode.INVALID_ARGUMENT, session::score);
            assertThrows(NullPointerException.class, () -> session.score((int[]) null));
        }
        try (Session session = engine.newSession(options().build())) {
            refused(ErrorCode.INVALID_ARGUMENT, () -> session.score(tokens));
        }
    }
}
