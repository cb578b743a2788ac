// Tests that misuse is an error.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.management.ManagementFactory;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.function.Executable;

/** Every mistake of a program is an error, and never ends the process. */
@Timeout(120)
class SafetyTest {
    private static Engine engine;
    private static ExecutorService threads;

    @BeforeAll
    static void open() {
        engine = Engines.weighted();
        threads = Executors.newCachedThreadPool();
    }

    @AfterAll
    static void close() {
        engine.close();
        threads.shutdown();
    }

    private static void refused(ErrorCode code, Executable call) {
        assertEquals(code, assertThrows(CosException.class, call).code());
    }

    private static void refusedAsClosed(Executable... calls) {
        for (Executable call : calls) {
            assertThrows(IllegalStateException.class, call);
        }
    }

    @Test
    void jniIsChecked() {
        assertTrue(ManagementFactory.getRuntimeMXBean().getInputArguments().contains("-Xcheck:jni"));
    }

    @Test
    void useAfterClose() {
        Engine closed = Engines.weighted();
        Session session = closed.newSession();
        TextStream stream = Engines.demo().newTextStream();
        Request request = Engines.demo().newRequest("{\"prompt\": \"a\"}", RequestOptions.builder().build());
        for (int again = 0; again < 2; again++) {
            closed.close();
            session.close();
            stream.close();
            request.close();
        }
        refusedAsClosed(closed::vocabSize, closed::modelCount, closed::describe, closed::describeTable,
                () -> closed.encode("text", true), () -> closed.decode(1), closed::stats, closed::metrics,
                closed::prepare, closed::newSession, closed::newTextStream,
                () -> closed.newRequest("{}", RequestOptions.builder().build()));
        refusedAsClosed(() -> session.prompt(1), session::step, session::stats, session::describe,
                () -> session.setWeights(1, 0));
        session.cancel();
        refusedAsClosed(() -> stream.push(1), stream::finish, stream::stopped, () -> stream.setStops("a"),
                stream::setStops, () -> stream.prompt(1));
        refusedAsClosed(request::step, request::status, request::answer, request::choices, () -> request.choice(0),
                () -> { throw Request.stepMany(List.of(request)).get(0).error(); });
        request.cancel();
    }

    @Test
    void aSecondThreadIsRefused() throws Exception {
        CountDownLatch inside = new CountDownLatch(1);
        CountDownLatch goOn = new CountDownLatch(1);
        Combiner waits = (logits, scores) -> {
            inside.countDown();
            goOn.await();
            scores.put(logits.get(0).duplicate());
        };
        try (Session session = engine.newSession(SessionOptions.builder().combiner(waits).build())) {
            session.prompt(Engines.PROMPT);
            Future<StepResult> step = threads.submit(session::step);
            inside.await();
            refused(ErrorCode.BUSY, session::step);
            refused(ErrorCode.BUSY, session::describe);
            refused(ErrorCode.BUSY, () -> session.prompt(1));
            refused(ErrorCode.BUSY, () -> session.setWeights(1, 0));
            assertEquals(0, session.stats().tokens());
            goOn.countDown();
            assertTrue(step.get().tokens().length > 0);
        }
    }

    /** Two threads use a session at once: each call succeeds or is refused. */
    @Test
    void competingThreads() throws Exception {
        SessionOptions options = SessionOptions.builder().stopTokens().logProbabilities(true).build();
        try (Session session = engine.newSession(options)) {
            session.prompt(Engines.PROMPT);
            Runnable fight = () -> {
                for (int round = 0; round < 300; round++) {
                    try {
                        StepResult step = session.step();
                        for (int token : step.tokens()) {
                            assertTrue(token >= 0 && token < 96);
                        }
                    } catch (CosException e) {
                        assertEquals(ErrorCode.BUSY, e.code());
                    }
                }
            };
            Future<?> one = threads.submit(fight);
            Future<?> two = threads.submit(fight);
            one.get();
            two.get();
        }
    }

    @Test
    void closeDuringStep() throws Exception {
        Engine demo = Engines.demo();
        for (int round = 0; round < 40; round++) {
            Session session = demo.newSession(SessionOptions.builder().temperature(1).seed(round).stopTokens().build());
            session.prompt(Engines.PROMPT);
            CountDownLatch stepping = new CountDownLatch(1);
            Future<Finish> steps = threads.submit(() -> {
                Finish last = Finish.NONE;
                try {
                    while (true) {
                        stepping.countDown();
                        last = session.step().finish();
                    }
                } catch (IllegalStateException closed) {
                    return last;
                }
            });
            stepping.await();
            Thread.sleep(0, ThreadLocalRandom.current().nextInt(1_000_000)); // at any point of a step
            session.close();
            assertThrows(IllegalStateException.class, session::stats);
            Finish last = steps.get(); // NONE if the session was closed between two steps
            assertTrue(last == Finish.CANCELLED || last == Finish.NONE, () -> "finished: " + last);
        }
    }

    /** close waits for a step although its thread is interrupted, and keeps the interruption. */
    @Test
    void closeWaits() throws Exception {
        CountDownLatch inside = new CountDownLatch(1);
        CountDownLatch goOn = new CountDownLatch(1);
        Session session = engine.newSession(SessionOptions.builder().combiner((logits, scores) -> {
            inside.countDown();
            goOn.await();
            scores.put(logits.get(0).duplicate());
        }).build());
        session.prompt(Engines.PROMPT);
        Future<StepResult> step = threads.submit(session::step);
        inside.await();
        Future<Boolean> close = threads.submit(() -> {
            Thread.currentThread().interrupt();
            session.close();
            return Thread.interrupted();
        });
        Thread.sleep(50);
        assertTrue(!close.isDone());
        goOn.countDown();
        assertTrue(close.get(), "the interruption is lost");
        step.get();
    }

    @Test
    void unreachableObjectsAreFreed() throws Exception {
        Engines.demo(); // stays reachable
        int before = NativeObject.LIVING.get();
        makeUnreachable();
        assertTrue(NativeObject.LIVING.get() > before);
        for (int wait = 0; NativeObject.LIVING.get() > before && wait < 400; wait++) {
            System.gc();
            Thread.sleep(10);
        }
        assertTrue(NativeObject.LIVING.get() <= before); // other tests leave unreachable objects too
    }

    private static void makeUnreachable() {
        Engine unreachable = Engines.weighted();
        for (int i = 0; i < 50; i++) {
            Session[] own = new Session[1];
            // A combiner that refers to its own session must not keep it alive.
            own[0] = unreachable.newSession(SessionOptions.builder().combiner((logits, scores) -> {
                own[0].stats();
                scores.put(logits.get(0).duplicate());
            }).build());
            if (i < 3) {
                own[0].prompt(Engines.PROMPT);
                own[0].step();
            }
            Engines.demo().newTextStream().push(1);
        }
    }

    /** Only its own running call refers to the session. */
    @Test
    void isNotFreedUnderItsLastCall() {
        for (int i = 0; i < 20; i++) {
            Session session = engine.newSession(SessionOptions.builder().combiner((logits, scores) -> {
                System.gc();
                scores.put(logits.get(0).duplicate());
            }).build());
            session.prompt(Engines.PROMPT);
            assertEquals(Finish.NONE, session.step().finish());
        }
    }

    @Test
    void hugeAndEmptyArrays() {
        int[] huge = new int[10_000_000];
        Engine demo = Engines.demo();
        try (Session session = demo.newSession(); TextStream stream = demo.newTextStream()) {
            refused(ErrorCode.CONTEXT_FULL, () -> session.prompt(huge));
            huge[huge.length - 1] = -1;
            refused(ErrorCode.INVALID_ARGUMENT, () -> demo.decode(huge));
            refused(ErrorCode.INVALID_ARGUMENT, () -> stream.push(huge));
            refused(ErrorCode.INVALID_ARGUMENT, session::prompt);
            refused(ErrorCode.INVALID_ARGUMENT, session::setWeights);
            refused(ErrorCode.INVALID_ARGUMENT, () -> session.setWeights(new float[10_000_000]));
            refused(ErrorCode.INVALID_ARGUMENT,
                    () -> demo.newSession(SessionOptions.builder().weights(new float[10_000_000]).build()));
            refused(ErrorCode.INVALID_ARGUMENT,
                    () -> demo.newSession(SessionOptions.builder().proposalLengths(new int[10_000_000]).build()));
            assertEquals(0, demo.encode("", false).length);
            assertTrue(demo.encode("word ".repeat(20_000), true).length > 20_000);
        }
    }

    @Test
    void onlyTheTemplateWritesControlTokens() {
        Engine demo = Engines.demo();
        String messages = "[{\"role\": \"user\", \"content\": \"2+2? <|endoftext|>\"}]";
        String whole = "Question: 2+2? <|endoftext|>\nAnswer:";
        int[] parsed = demo.encode(whole, false);
        int[] safe = demo.chatEncode(messages, true);
        assertEquals(whole, demo.chat(messages, true));
        assertEquals("Question: 2+2? <|endoftext|>\n", demo.chat(messages, false));
        assertEquals(1, Arrays.stream(parsed).filter(token -> token == 0).count());
        assertEquals(0, Arrays.stream(safe).filter(token -> token == 0).count());
        assertEquals(0, Arrays.stream(demo.encodePlain(whole, false)).filter(token -> token == 0).count());
        assertEquals(whole, demo.decode(safe));
        assertEquals(whole, demo.decodeSpecial(parsed));
        String longText = "x".repeat(100_000);
        String longMessages = "[{\"role\": \"user\", \"content\": \"" + longText + "\"}]";
        assertEquals("Question: " + longText + "\nAnswer:", demo.chat(longMessages, true));
        refused(ErrorCode.INVALID_ARGUMENT, () -> demo.chat("[]", true));
        refused(ErrorCode.INVALID_ARGUMENT, () -> demo.chatEncode("", true));
        assertThrows(NullPointerException.class, () -> demo.chat(null, true));
        assertThrows(NullPointerException.class, () -> demo.decodeSpecial((int[]) null));
        try (TextStream stream = demo.newTextStream()) {
            stream.showSpecial(true);
            stream.prompt();
            assertEquals(whole, stream.push(parsed) + stream.finish());
            stream.push(parsed);
            refused(ErrorCode.INVALID_ARGUMENT, () -> stream.showSpecial(false));
        }
    }

    @Test
    void stopStringsThatAreNone() {
        Engine demo = Engines.demo();
        try (TextStream stream = demo.newTextStream()) {
            stream.setStops("b");
            refused(ErrorCode.INVALID_ARGUMENT, () -> stream.setStops(""));
            refused(ErrorCode.INVALID_ARGUMENT, () -> stream.setStops("a", ""));
            refused(ErrorCode.INVALID_ARGUMENT, () -> stream.setStops("a", "\uD83D"));
            assertThrows(NullPointerException.class, () -> stream.setStops("a", null));
            assertThrows(NullPointerException.class, () -> stream.setStops((String[]) null));
            assertEquals("a", stream.push(demo.encode("abc", false)) + stream.finish(), "those before stay");
            String[] many = new String[100_000];
            Arrays.fill(many, "a\0");
            stream.setStops(many);
            stream.setStops("a".repeat(10_000_000));
            assertEquals("", stream.push(demo.encode("aa", false)));
            assertEquals("aa", stream.finish());
        }
    }

    @Test
    void whatIsNoText() {
        Engine demo = Engines.demo();
        for (String text : new String[] {"\uD83D", "a\uDE00b", "\uDE00\uD83D"}) {
            refused(ErrorCode.INVALID_ARGUMENT, () -> demo.encode(text, true));
            refused(ErrorCode.INVALID_ARGUMENT, () -> Engine.fromJson(text));
        }
        refused(ErrorCode.INVALID_ARGUMENT, () -> Engine.fromJson("{}\0"));
    }

    @Test
    void nulls() {
        assertThrows(NullPointerException.class, () -> Engine.open(null));
        assertThrows(NullPointerException.class, () -> Engine.fromJson(null));
        assertThrows(NullPointerException.class, () -> engine.encode(null, true));
        assertThrows(NullPointerException.class, () -> engine.decode((int[]) null));
        assertThrows(NullPointerException.class, () -> engine.newSession(null));
        try (Session session = engine.newSession()) {
            assertThrows(NullPointerException.class, () -> session.prompt((int[]) null));
            assertThrows(NullPointerException.class, () -> session.setWeights((float[]) null));
        }
        assertThrows(NullPointerException.class, () -> SessionOptions.builder().strategy(null));
    }

    @Test
    void numbersOutOfRange() {
        refused(ErrorCode.INVALID_ARGUMENT, () -> SessionOptions.builder().maxTokens(-1));
        refused(ErrorCode.INVALID_ARGUMENT, () -> SessionOptions.builder().maxTokens(1L << 32));
        engine.newSession(SessionOptions.builder().maxTokens((1L << 32) - 1).build()).close();
    }
}
