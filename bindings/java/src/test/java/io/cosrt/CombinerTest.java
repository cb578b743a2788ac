// Tests combine functions.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.ReadOnlyBufferException;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Combine functions of the caller. */
class CombinerTest {
    private static Engine engine;

    @BeforeAll
    static void open() {
        engine = Engines.weighted();
    }

    @AfterAll
    static void close() {
        engine.close();
    }

    private static SessionOptions options(Combiner combiner) {
        return SessionOptions.builder().stopTokens().maxTokens(16).combiner(combiner).build();
    }

    private static Session prompted(Combiner combiner) {
        Session session = engine.newSession(options(combiner));
        session.prompt(Engines.PROMPT);
        return session;
    }

    private static void second(List<FloatBuffer> logits, FloatBuffer scores) {
        scores.put(logits.get(1).duplicate());
    }

    @Test
    void decodesWhatItSays() {
        try (Engine two = Engines.target(1)) {
            assertEquals(Engines.decode(two, options(null)), Engines.decode(engine, options(CombinerTest::second)));
        }
    }

    @Test
    void modelsWithoutWeightAreNull() {
        SessionOptions options = SessionOptions.builder().weights(0, 1).maxTokens(4).combiner((logits, scores) -> {
            assertNull(logits.get(0));
            assertEquals(96, logits.get(1).remaining());
            assertEquals(96, scores.remaining());
            assertThrows(ReadOnlyBufferException.class, () -> logits.get(1).put(0, 0));
            second(logits, scores);
        }).build();
        Engines.decode(engine, options);
    }

    @Test
    void whatItThrowsIsTheCause() {
        for (Throwable thrown
                : List.of(new IOException("checked"), new IllegalStateException(), new StackOverflowError())) {
            try (Session session = prompted((logits, scores) -> sneak(thrown))) {
                for (int again = 0; again < 2; again++) {
                    CosException e = assertThrows(CosException.class, session::step);
                    assertEquals(ErrorCode.CALLBACK, e.code());
                    assertSame(thrown, e.getCause());
                }
            }
        }
        try (Session session = prompted((logits, scores) -> { })) {
            assertEquals(ErrorCode.NUMERIC, assertThrows(CosException.class, session::step).code());
        }
    }

    @SuppressWarnings("unchecked")
    private static <T extends Throwable> void sneak(Throwable thrown) throws T {
        throw (T) thrown;
    }

    /** Throws once, at each of the calls in turn. If the step had committed a token, the next step throws. */
    @Test
    void whatItThrowsIsNeverLost() {
        List<Integer> expected = Engines.decode(engine, options(CombinerTest::second));
        for (int failing = 0; failing < 12; failing++) {
            AtomicInteger calls = new AtomicInteger(-failing);
            IllegalStateException thrown = new IllegalStateException("once");
            Combiner combiner = (logits, scores) -> {
                if (calls.getAndIncrement() == 0) {
                    throw thrown;
                }
                second(logits, scores);
            };
            SessionOptions options = SessionOptions.builder().stopTokens().maxTokens(16).strategy(Strategy.COS)
                    .combiner(combiner).build();
            List<Integer> tokens = new java.util.ArrayList<>();
            int told = 0;
            try (Session session = engine.newSession(options)) {
                session.prompt(Engines.PROMPT);
                for (Finish finish = Finish.NONE; finish == Finish.NONE; ) {
                    try {
                        StepResult step = session.step();
                        for (int token : step.tokens()) {
                            tokens.add(token);
                        }
                        finish = step.finish();
                    } catch (CosException e) {
                        assertSame(thrown, e.getCause());
                        told++;
                    }
                }
            }
            assertEquals(1, told);
            assertEquals(expected, tokens);
        }
    }

    @Test
    void mayUseItsSessionAsFarAsThatIsPromised() {
        AtomicReference<Session> own = new AtomicReference<>();
        AtomicInteger calls = new AtomicInteger();
        Combiner combiner = (logits, scores) -> {
            Session session = own.get();
            session.stats();
            session.cancel();
            assertEquals(ErrorCode.BUSY, assertThrows(CosException.class, session::step).code());
            assertEquals(ErrorCode.BUSY, assertThrows(CosException.class, () -> session.prompt(1)).code());
            assertThrows(IllegalStateException.class, session::close);
            calls.incrementAndGet();
            second(logits, scores);
        };
        try (Session session = prompted(combiner)) {
            own.set(session);
            session.step();
            assertTrue(calls.get() > 0);
        }
        own.set(null);
    }

    /** A step of another session inside a combine function must not replace the running step. */
    @Test
    void mayStepOtherSessions() {
        List<Integer> expected = Engines.decode(engine, options(CombinerTest::second));
        Combiner nested = (logits, scores) -> {
            Engines.decode(engine, options((inner, innerScores) -> innerScores.put(inner.get(0).duplicate())));
            second(logits, scores);
        };
        assertEquals(expected.subList(0, 4), Engines.decode(engine, SessionOptions.builder().stopTokens().maxTokens(4)
                .combiner(nested).build()));
    }
}
