// Tests sessions, streams of text and engines.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.reflect.Method;
import java.lang.reflect.RecordComponent;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Sessions, streams of text and engines. */
class SessionTest {
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
        return SessionOptions.builder().stopTokens().maxTokens(16);
    }

    @Test
    void engineTellsWhatItIs() {
        assertEquals("0.1.0", Cos.version());
        assertEquals(96, engine.vocabSize());
        assertEquals(2, engine.modelCount());
        assertTrue(engine.describe().contains("\"vocab_size\":96") || engine.describe().contains("\"vocab_size\": 96"));
        assertTrue(engine.describeTable().contains("one"));
    }

    @Test
    void stopTokensNullAndEmptyDiffer() {
        int first = Engines.decode(engine, options().build()).get(0);
        assertEquals(16, Engines.decode(engine, options().build()).size());
        assertEquals(List.of(first), Engines.decode(engine, options().stopTokens(first).build()));
        try (Session session = engine.newSession(options().stopTokens(first).build())) {
            session.prompt(Engines.PROMPT);
            assertEquals(Finish.STOP, session.step().finish());
        }
        // The models' own stop tokens count, unless the options have an empty array.
        Engine demo = Engines.demo();
        int stop = Integer.parseInt(demo.describe().replaceAll("(?s).*\"stop_tokens\": ?\\[(\\d+).*", "$1"));
        for (int[] own : new int[][] {null, {}}) {
            Combiner always = (logits, scores) -> {
                for (int token = 0; token < scores.capacity(); token++) {
                    scores.put(token, token == stop ? 1 : 0);
                }
            };
            try (Session session = demo.newSession(options().stopTokens(own).combiner(always).build())) {
                session.prompt(Engines.PROMPT);
                assertEquals(own == null, session.step().finish() == Finish.STOP);
            }
        }
    }

    /** A fork and a rewound session go on as the session would. */
    @Test
    void forksAndRewoundSessionsGoOn() {
        List<Integer> whole = Engines.decode(engine, options().maxTokens(8).build());
        try (Session session = engine.newSession(options().maxTokens(8).build())) {
            session.setScope("tenant");
            assertThrows(CosException.class, () -> session.setScope("a\0b"));
            session.prompt(Engines.PROMPT);
            assertThrows(CosException.class, () -> session.setScope("late"));
            try (Session fork = session.fork(7)) {
                assertEquals(whole, rest(fork));
            }
            assertEquals(whole, rest(session));
            session.rewind(Engines.PROMPT.length + 2);
            assertEquals(whole.subList(2, 8), rest(session));
            assertThrows(CosException.class, () -> session.rewind(1000));
            assertEquals(0, session.stats().recomputedTokens());
        }
        try (Session combined = engine.newSession(options().combiner((logits, scores) -> {}).build())) {
            assertEquals(ErrorCode.UNSUPPORTED, assertThrows(CosException.class, () -> combined.fork(1)).code());
        }
    }

    private static List<Integer> rest(Session session) {
        List<Integer> tokens = new ArrayList<>();
        StepResult step;
        do {
            step = session.step();
            for (int token : step.tokens()) {
                tokens.add(token);
            }
        } while (step.finish() == Finish.NONE);
        return tokens;
    }

    /** One thread drives sessions that end at different times. A bad one hurts no other. */
    @Test
    void oneThreadDrivesMany() {
        List<Session> sessions = new ArrayList<>();
        List<List<Integer>> alone = new ArrayList<>();
        List<List<Integer>> texts = new ArrayList<>();
        for (int index = 0; index < 6; index++) {
            SessionOptions options = options().strategy(Strategy.values()[index % 4]).maxTokens(4 + index).build();
            alone.add(Engines.decode(engine, options));
            texts.add(new ArrayList<>());
            sessions.add(engine.newSession(options));
        }
        for (int second = 0; second < 2; second++) { // each combiner is that of its session
            int model = second;
            Combiner combiner = (logits, scores) -> scores.put(logits.get(model).duplicate());
            SessionOptions options = options().strategy(Strategy.COS).combiner(combiner).build();
            alone.add(Engines.decode(engine, options));
            texts.add(new ArrayList<>());
            sessions.add(engine.newSession(options));
        }
        Exception planted = new Exception("planted");
        Session failing = engine.newSession(options().combiner((logits, scores) -> {
            throw planted;
        }).build());
        Session closed = engine.newSession();
        sessions.forEach(session -> session.prompt(Engines.PROMPT));
        failing.prompt(Engines.PROMPT);
        closed.close();
        List<Session> all = new ArrayList<>(sessions);
        all.addAll(Arrays.asList(null, sessions.get(0), closed, failing));
        int failures = 0;
        for (int calls = 0, finished = 0; finished < sessions.size(); calls++) {
            assertTrue(calls < 200);
            finished = 0;
            List<News> news = Session.stepMany(all);
            for (int index = 0; index < sessions.size(); index++) {
                assertNull(news.get(index).error());
                for (int token : news.get(index).step().tokens()) {
                    texts.get(index).add(token);
                }
                finished += news.get(index).step().finish() == Finish.NONE ? 0 : 1;
            }
            for (int wrong = 0; wrong < 2; wrong++) {
                CosException error = (CosException) news.get(sessions.size() + wrong).error();
                assertEquals(ErrorCode.INVALID_ARGUMENT, error.code());
            }
            assertTrue(news.get(sessions.size() + 2).error() instanceof IllegalStateException);
            if (news.get(sessions.size() + 3).error() instanceof CosException error) {
                assertEquals(ErrorCode.CALLBACK, error.code());
                assertEquals(planted, error.getCause());
                failures++;
            }
        }
        assertTrue(failures > 0);
        assertEquals(alone, texts);
        assertEquals(List.of(), Session.stepMany(List.of()));
        sessions.forEach(Session::close);
        failing.close();
    }

    @Test
    void seedsGiveTheSameTokens() {
        SessionOptions.Builder sampled =
                options().strategy(Strategy.COS).temperature(1).topK(20).topP(0.95f).minP(0.01f);
        assertEquals(Engines.decode(engine, sampled.seed(-1).build()), Engines.decode(engine, sampled.build()));
        assertNotEquals(Engines.decode(engine, sampled.seed(1).build()),
                Engines.decode(engine, sampled.seed(2).build()));
        Engines.decode(engine, sampled.targets(Targets.ROUTED).build());
    }

    @Test
    void logProbabilitiesComeIfAskedFor() {
        try (Session without = engine.newSession();
                Session with = engine.newSession(options().logProbabilities(true).build())) {
            without.prompt(Engines.PROMPT);
            assertNull(without.step().logProbabilities());
            with.prompt(Engines.PROMPT);
            StepResult step = with.step();
            assertEquals(step.tokens().length, step.logProbabilities().length);
        }
    }

    @Test
    void weightsMayChange() {
        try (Engine one = Engines.target(0);
                Engine two = Engines.target(1);
                Session session = engine.newSession(options().build())) {
            session.setWeights(0, 1);
            session.prompt(Engines.PROMPT);
            assertEquals(Engines.decode(two, options().build()).get(0), session.step().tokens()[0]);
            assertEquals(Engines.decode(one, options().build()),
                    Engines.decode(engine, options().weights(1, 0).build()));
        }
    }

    @Test
    void cancelEndsTheNextStep() {
        try (Session session = engine.newSession(options().build())) {
            session.prompt(Engines.PROMPT);
            session.cancel();
            StepResult step = session.step();
            assertEquals(Finish.CANCELLED, step.finish());
            assertEquals(0, step.tokens().length);
            assertEquals(Finish.NONE, session.step().finish());
        }
    }

    @Test
    void statisticsCount() {
        try (Session session = engine.newSession(options().strategy(Strategy.COS).build())) {
            session.prompt(Engines.PROMPT);
            int tokens = 0;
            int steps = 0;
            StepResult step;
            do {
                step = session.step();
                tokens += step.tokens().length;
                steps++;
            } while (step.finish() == Finish.NONE);
            Stats stats = session.stats();
            assertEquals(tokens, stats.tokens());
            assertEquals(steps, stats.steps());
            assertTrue(stats.proposed() >= stats.tested() && stats.tested() >= stats.accepted());
            assertTrue(stats.forwards() > 0 && stats.positions() > 0);
            assertTrue(stats.totalNs() >= stats.modelNs() && stats.modelNs() > 0);
        }
    }

    @Test
    void plansAreDescribed() {
        for (Strategy strategy : new Strategy[] {Strategy.AUTO, Strategy.STANDARD}) {
            boolean planned = strategy == Strategy.AUTO;
            try (Session session = Engines.demo().newSession(options().strategy(strategy).maxTokens(64).build())) {
                session.prompt(Engines.PROMPT);
                while (session.step().finish() == Finish.NONE) { }
                String json = session.describe();
                Stats stats = session.stats();
                assertTrue(json.contains(planned ? "\"strategy\":" : "\"strategy\":\"standard\""), json);
                assertTrue(json.contains("\"planned\":" + planned), json);
                assertTrue(stats.plannedNs() >= 0 && stats.plannedNs() <= stats.totalNs());
                String gain = json.replaceAll("(?s).*\"measured_gain\":([^,}]*).*", "$1");
                if (stats.plannedNs() == 0) { // the plan is not evaluated at once
                    assertEquals(0, stats.expectedNs());
                    assertEquals(0, stats.standardNs());
                    assertEquals("null", gain);
                } else {
                    assertTrue(planned);
                    assertEquals((double) stats.standardNs() / stats.plannedNs(), Double.parseDouble(gain), 1e-6);
                }
            }
        }
    }

    @Test
    void routesAreSharedIfAskedFor() {
        SessionOptions.Builder pinned = options().strategy(Strategy.STANDARD).temperature(1).targets(Targets.ROUTED);
        for (Routes routes : Routes.values()) {
            try (Session session = engine.newSession(pinned.routes(routes).build())) {
                session.prompt(Engines.PROMPT);
                session.step();
                String says = "\"routes\":" + (routes == Routes.SHARED ? "\"shared\"" : "\"own\"");
                assertTrue(session.describe().contains(says), session.describe());
            }
        }
        assertThrows(NullPointerException.class, () -> pinned.routes(null));
    }

    @Test
    void batchSessionsDecode() {
        assertEquals(16, Engines.decode(engine, options().priority(Priority.BATCH).build()).size());
        assertThrows(NullPointerException.class, () -> options().priority(null));
        // The enumeration has no wrong priority.
        Object[] arrays = options().build().arrays();
        ((int[]) arrays[0])[5] = 2;
        CosException error = assertThrows(CosException.class, () -> engine.shared(pointer ->
                Native.sessionNew(pointer, 0, arrays, 0, false, false, false)));
        assertEquals(ErrorCode.INVALID_ARGUMENT, error.code());
        assertTrue(error.getMessage().contains("priority is 2"), error.getMessage());
    }

    /** Threads decode, and others read the metrics meanwhile. Counters never shrink, and then have all tokens. */
    @Test
    void metricsCount() throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(4);
        try (Engine own = Engines.weighted()) {
            List<Future<?>> decoding = new ArrayList<>();
            List<Future<?>> reading = new ArrayList<>();
            AtomicBoolean done = new AtomicBoolean();
            for (int seed = 0; seed < 2; seed++) {
                SessionOptions options =
                        options().strategy(Strategy.COS).temperature(1).seed(seed).maxTokens(100).build();
                decoding.add(threads.submit(() -> Engines.decode(own, options)));
                reading.add(threads.submit(() -> {
                    double tokens = 0;
                    double wasted = 0;
                    while (!done.get()) {
                        String text = own.metrics();
                        assertTrue(sample(text, "cos_tokens_total") >= tokens);
                        assertTrue(sample(text, "cos_wasted_total") >= wasted);
                        tokens = sample(text, "cos_tokens_total");
                        wasted = sample(text, "cos_wasted_total");
                    }
                }));
            }
            for (Future<?> thread : decoding) {
                thread.get();
            }
            done.set(true);
            for (Future<?> thread : reading) {
                thread.get();
            }
            String text = own.metrics();
            assertEquals(200, sample(text, "cos_tokens_total"));
            assertEquals(2, sample(text, "cos_first_token_seconds_count"));
            assertEquals(sample(text, "cos_proposed_total") - sample(text, "cos_accepted_total"),
                    sample(text, "cos_wasted_total"));
        } finally {
            threads.shutdown();
        }
        String name = "x".repeat(2000); // the text is longer than the first buffer
        try (Engine named = Engines.named(name)) {
            assertTrue(named.metrics().length() > 1 << 15);
            assertEquals(0, sample(named.metrics(), "cos_pass_tokens_count{model=\"" + name + "\"}"));
        }
    }

    private static double sample(String metrics, String name) {
        String line = metrics.lines().filter(one -> one.startsWith(name + " ")).findFirst().orElseThrow();
        return Double.parseDouble(line.substring(name.length() + 1));
    }

    @Test
    void textGoesThereAndBack() {
        String text = "Zwölf Boxkämpfer jagen 😀 quer über 東京.\0 And on.";
        Engine demo = Engines.demo();
        try (TextStream stream = demo.newTextStream()) {
            int[] tokens = demo.encode(text, false);
            assertEquals(text, demo.decode(tokens));
            assertEquals("", demo.decode());
            StringBuilder pieces = new StringBuilder();
            for (int token : tokens) {
                String piece = stream.push(token);
                assertFalse(piece.contains("\uFFFD"), "cut within a character");
                pieces.append(piece);
            }
            assertEquals(text, pieces.append(stream.finish()).toString());
            assertEquals("", stream.push());
        }
    }

    @Test
    void textGoesOnBehindAPrompt() {
        String config = """
                {"models": [{"path": "tests/fixtures/tiny"}], "combine": {"kind": "target", "model": 0}}""";
        try (Engine tiny = Engine.fromJson(config); TextStream stream = tiny.newTextStream()) {
            assertEquals(" a b", stream.push(1, 2), "behind a prompt that is not known");
            CosException late = assertThrows(CosException.class, () -> stream.prompt(3));
            assertEquals(ErrorCode.INVALID_ARGUMENT, late.code());
            stream.finish();
            stream.prompt();
            assertEquals("a b", stream.push(1, 2) + stream.finish(), "behind none");
            stream.prompt(tiny.encode("c", false));
            assertEquals(" a b", stream.push(1, 2) + stream.finish());
        }
    }

    @Test
    void textEndsBeforeAStopString() {
        String text = "One cat and two cats, then no more.";
        Engine demo = Engines.demo();
        try (TextStream stream = demo.newTextStream()) {
            int[] tokens = demo.encode(text, false);
            stream.setStops("never", "d two c");
            StringBuilder pieces = new StringBuilder();
            for (int token : tokens) {
                assertTrue("One cat an".startsWith(pieces.append(stream.push(token)).toString()), "not held back");
            }
            assertEquals("One cat an", pieces.toString());
            assertTrue(stream.stopped());
            assertEquals("", stream.finish());
            assertTrue(stream.stopped(), "until the next push");
            stream.push();
            assertTrue(stream.stopped(), "no token begins no text");
            stream.push(tokens[0]);
            assertFalse(stream.stopped());
            stream.finish();

            assertEquals("One cat an", stream.push(tokens) + stream.finish(), "the strings stay");
            stream.setStops("more. 東京");
            assertEquals("One cat and two cats, then no ", stream.push(tokens));
            assertEquals("more.", stream.finish(), "held back, and comes after all");
            stream.setStops("東京", "t 東京");
            assertEquals("a", stream.push(demo.encode("at 東京", false)), "beyond ASCII");
            assertEquals("", stream.finish());
            stream.setStops();
            assertEquals(text, stream.push(tokens) + stream.finish());
        }
    }

    @Test
    void anEngineCountsItsSessions() throws ReflectiveOperationException {
        try (Engine own = Engines.weighted()) {
            Session one = own.newSession(options().build());
            Session two = own.newSession(options().strategy(Strategy.COS).build());
            for (Session session : List.of(one, two, one)) {
                session.prompt(Engines.PROMPT);
                session.step();
            }
            Stats total = own.stats();
            for (RecordComponent member : Stats.class.getRecordComponents()) {
                Method of = member.getAccessor();
                long sum = (long) of.invoke(one.stats()) + (long) of.invoke(two.stats());
                assertEquals(sum, of.invoke(total), member.getName());
            }
            assertEquals(3, total.steps());
            one.close();
            two.close();
            assertEquals(total, own.stats());
        }
    }

    @Test
    void sessionsOutliveTheirEngine() {
        Engine shortLived = Engines.weighted();
        Session session = shortLived.newSession(options().build());
        shortLived.close();
        session.prompt(Engines.PROMPT);
        assertTrue(session.step().tokens().length > 0);
        session.close();
    }
}
