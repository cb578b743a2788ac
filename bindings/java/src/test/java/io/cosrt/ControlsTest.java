// Tests what controls tokens, alternatives, options that change, and saved sessions.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Bias, penalties, bans, constraints, alternatives, options that change, and saved sessions. */
class ControlsTest {
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

    private static Session prompted(SessionOptions.Builder options) {
        Session session = engine.newSession(options.build());
        session.prompt(Engines.PROMPT);
        return session;
    }

    private static void refused(ErrorCode code, String says, Executable call) {
        CosException error = assertThrows(CosException.class, call);
        assertEquals(code, error.code(), error.getMessage());
        assertTrue(error.getMessage().contains(says), error.getMessage());
    }

    private static List<Integer> rest(Session session, Finish expected) {
        List<Integer> tokens = new ArrayList<>();
        StepResult step;
        do {
            step = session.step();
            for (int token : step.tokens()) {
                tokens.add(token);
            }
        } while (step.finish() == Finish.NONE);
        assertEquals(expected, step.finish());
        return tokens;
    }

    private static String written(SessionOptions.Builder options) {
        Engine demo = Engines.demo();
        try (Session session = demo.newSession(options.build())) {
            session.prompt(demo.encode("Question: what is it? Answer: ", true));
            List<Integer> tokens = new ArrayList<>();
            StepResult step;
            do {
                step = session.step();
                for (int token : step.tokens()) {
                    tokens.add(token);
                }
            } while (step.finish() == Finish.NONE);
            assertTrue(step.finish() == Finish.COMPLETE || step.finish() == Finish.STOP, step.toString());
            return demo.decode(tokens.stream().mapToInt(Integer::intValue).toArray());
        }
    }

    @Test
    void textsKeepToTheirConstraint() {
        // Without white space, of which the models like to write a lot.
        String schema = """
                {"x-guidance": {"whitespace_flexible": false}, "type": "object", "properties": {
                 "name": {"type": "string", "pattern": "^[a-z]{1,5}$"},
                 "age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["name", "age"],
                 "additionalProperties": false}""";
        List<String> choices = List.of("ja", "\"nein\" \\ \n\t", "vielleicht 漢");
        for (int seed = 0; seed < 4; seed++) {
            SessionOptions.Builder options = SessionOptions.builder().temperature(1).seed(seed).maxTokens(200);
            String json = written(options.constraint(Constraint.jsonSchema(schema)));
            assertTrue(json.matches("\\{\"name\":\"[a-z]{1,5}\",\"age\":\\d{1,2}}"), json);
            String choice = written(options.constraint(Constraint.choices(choices.toArray(String[]::new))));
            assertTrue(choices.contains(choice), choice);
            String matching = written(options.constraint(Constraint.regex("[ab]{3}-[0-9]")));
            assertTrue(matching.matches("[ab]{3}-[0-9]"), matching);
            String derived = written(options.constraint(Constraint.lark("start: \"x\" /[yz]/ \"!\"")));
            assertTrue(derived.matches("x[yz]!"), derived);
        }
    }

    /** Allows token 10 + i at place i of the text, and then nothing. */
    private static Constrainer counting(int length) {
        return (text, mask) -> {
            for (int word = 0; word < mask.capacity(); word++) {
                mask.put(word, 0);
            }
            int place = text.tokens().remaining();
            if (place < length) {
                mask.put((10 + place) / 32, 1 << (10 + place) % 32);
            }
        };
    }

    @Test
    void functionsConstrain() {
        for (Strategy strategy : Strategy.values()) {
            int[][] last = {{}};
            Set<Long> numbers = new HashSet<>();
            Constrainer constrainer = (text, mask) -> {
                int[] tokens = new int[text.tokens().remaining()];
                text.tokens().get(tokens);
                text.tokens().rewind();
                assertTrue(text.tokens().isReadOnly());
                for (int i = 0; i < text.kept(); i++) {
                    assertEquals(last[0][i], tokens[i]);
                }
                assertEquals(3, mask.capacity());
                assertEquals(-1, mask.get(2));
                last[0] = tokens;
                numbers.add(text.number());
                counting(5).constrain(text, mask);
            };
            try (Session session = prompted(options().strategy(strategy).constrainer(constrainer))) {
                assertEquals(List.of(10, 11, 12, 13, 14), rest(session, Finish.COMPLETE));
                assertEquals(1, numbers.size());
            }
        }
    }

    @Test
    void whatAFunctionThrowsIsTheCause() {
        IOException planted = new IOException("planted");
        boolean[] failing = {true};
        Constrainer constrainer = (text, mask) -> {
            if (failing[0]) {
                throw planted;
            }
            counting(2).constrain(text, mask);
        };
        try (Session session = prompted(options().constrainer(constrainer))) {
            for (int again = 0; again < 2; again++) {
                CosException error = assertThrows(CosException.class, session::step);
                assertEquals(ErrorCode.CALLBACK, error.code());
                assertSame(planted, error.getCause());
            }
            assertSame(planted, Session.stepMany(List.of(session)).get(0).error().getCause());
            failing[0] = false;
            assertEquals(List.of(10, 11), rest(session, Finish.COMPLETE));
        }
    }

    @Test
    void aFunctionMayUseItsSessionAsFarAsThatIsPromised() {
        Session[] own = new Session[1];
        Constrainer constrainer = (text, mask) -> {
            own[0].stats();
            assertThrows(CosException.class, own[0]::save);
            assertThrows(CosException.class, () -> own[0].setOptions(options().build()));
            assertThrows(IllegalStateException.class, own[0]::close);
            counting(1).constrain(text, mask);
        };
        own[0] = prompted(options().constrainer(constrainer));
        assertEquals(List.of(10), rest(own[0], Finish.COMPLETE));
        own[0].close();
    }

    /** What is thrown for a fork does not reach its parent, also if both decode in the same call. */
    @Test
    void aForkHasItsOwnFunction() {
        IllegalStateException planted = new IllegalStateException("planted");
        List<Long> numbers = Collections.synchronizedList(new ArrayList<>());
        Constrainer constrainer = (text, mask) -> {
            if (!numbers.contains(text.number())) {
                numbers.add(text.number());
            }
            if (numbers.indexOf(text.number()) > 0) {
                throw planted;
            }
            counting(3).constrain(text, mask);
        };
        SessionOptions.Builder options = options().strategy(Strategy.STANDARD).constrainer(constrainer);
        try (Session session = prompted(options); Session fork = session.fork(5)) {
            List<Integer> tokens = new ArrayList<>();
            for (int call = 0; call < 20; call++) {
                List<News> news = Session.stepMany(List.of(session, fork));
                assertNull(news.get(0).error());
                for (int token : news.get(0).step().tokens()) {
                    tokens.add(token);
                }
                assertSame(planted, news.get(1).error().getCause());
            }
            assertEquals(List.of(10, 11, 12), tokens);
            assertEquals(2, numbers.size());
        }
    }

    @Test
    void biasPenaltiesAndBansHold() {
        List<Integer> free = Engines.decode(engine, options().build());
        Map<Integer, Float> forces = Map.of(7, 1000f);
        assertEquals(Collections.nCopies(16, 7), Engines.decode(engine, options().logitBias(forces).build()));
        Map<Integer, Float> bans = Map.of(free.get(0), Float.NEGATIVE_INFINITY, 7, 1000f);
        SessionOptions.Builder banning = options().logitBias(bans).bannedTokens(new int[] {7, 7});
        List<Integer> banned = Engines.decode(engine, banning.build());
        assertFalse(banned.contains(free.get(0)));
        assertEquals(7, banned.get(0));
        assertNotEquals(7, banned.get(1));
        for (SessionOptions.Builder once : List.of(options().presencePenalty(1000), options().frequencyPenalty(1000),
                options().noRepeatNgram(1))) {
            List<Integer> tokens = Engines.decode(engine, once.build());
            assertEquals(16, new HashSet<>(tokens).size(), tokens.toString());
        }
        assertEquals(free, Engines.decode(engine, options().repetitionPenalty(1).build()));
        List<Integer> punished = Engines.decode(engine, options().logitBias(forces).repetitionPenalty(1e6f).build());
        assertEquals(0, punished.indexOf(7));
        assertEquals(0, punished.lastIndexOf(7));
        assertEquals(6, Engines.decode(engine, options().stopTokens(7).logitBias(forces).minTokens(5).build()).size());
    }

    @Test
    void alternativesComeIfAskedFor() {
        SessionOptions.Builder options = options().logProbabilities(true).topLogProbabilities(3)
                .modelLogProbabilities(true).logitBias(Map.of(7, 12f));
        for (boolean before : new boolean[] {false, true}) {
            try (Session session = prompted(options.logProbabilitiesBefore(before))) {
                StepResult step;
                do {
                    step = session.step();
                    assertEquals(step.tokens().length, step.alternatives().size());
                    for (int i = 0; i < step.tokens().length; i++) {
                        List<Alternative> row = step.alternatives().get(i);
                        assertEquals(3, row.size());
                        assertTrue(row.get(0).logProbability() >= row.get(1).logProbability());
                        assertEquals(2, step.modelLogProbabilities()[i].length);
                        Alternative chosen = new Alternative(step.tokens()[i], step.logProbabilities()[i]);
                        assertEquals(!before, row.get(0).equals(chosen), step.toString()); // before the bias
                    }
                } while (step.finish() == Finish.NONE);
            }
        }
        options.logProbabilitiesBefore(false).constrainer(counting(4));
        try (Session session = prompted(options)) {
            assertEquals(List.of(List.of(new Alternative(10, 0))), session.step().alternatives().subList(0, 1));
        }
        try (Session plain = prompted(options())) {
            StepResult step = plain.step();
            assertEquals(List.of(), step.alternatives());
            assertNull(step.modelLogProbabilities());
        }
    }

    @Test
    void originsComeWithTokens() {
        SessionOptions.Builder options = options().strategy(Strategy.COS).temperature(1).seed(3).maxTokens(40);
        try (Session session = prompted(options)) {
            List<Origin> origins = new ArrayList<>();
            StepResult step;
            do {
                step = session.step();
                assertEquals(step.tokens().length, step.origins().size());
                origins.addAll(step.origins());
            } while (step.finish() == Finish.NONE);
            long accepted = origins.stream().filter(origin -> origin.kind() == Origin.Kind.ACCEPTED).count();
            long replaced = origins.stream().filter(origin -> origin.kind() == Origin.Kind.REPLACED).count();
            assertTrue(accepted > 0);
            assertEquals(session.stats().accepted(), accepted);
            assertEquals(session.stats().tested(), accepted + replaced);
            assertTrue(origins.stream().allMatch(origin -> origin.kind() == Origin.Kind.DRAWN || origin.model() >= 0));
        }
        try (Session session = prompted(options().constrainer(counting(4)))) {
            assertEquals(new Origin(Origin.Kind.FORCED, -1), session.step().origins().get(0));
        }
    }

    @Test
    void optionsMayChange() {
        SessionOptions first = options().maxTokens(2).seed(9).build();
        try (Session session = prompted(first.toBuilder())) {
            assertEquals(2, rest(session, Finish.MAX_TOKENS).size());
            session.setOptions(first.toBuilder().maxTokens(4).logitBias(Map.of(7, 1000f)).build());
            assertEquals(List.of(7, 7), rest(session, Finish.MAX_TOKENS));
            Constrainer fives = (text, mask) -> {
                for (int word = 0; word < mask.capacity(); word++) {
                    mask.put(word, word == 0 && text.tokens().remaining() < 6 ? 1 << 5 : 0);
                }
            };
            session.setOptions(first.toBuilder().maxTokens(0).constrainer(fives).build());
            SessionOptions wrong = first.toBuilder().seed(10).constrainer((text, mask) -> {
                throw new IllegalStateException("not in use");
            }).build();
            refused(ErrorCode.INVALID_ARGUMENT, "seed", () -> session.setOptions(wrong));
            assertEquals(List.of(5, 5), rest(session, Finish.COMPLETE));
        }
    }

    @Test
    void aSavedSessionGoesOn() {
        SessionOptions options = options().strategy(Strategy.STANDARD).temperature(1).seed(3).frequencyPenalty(0.5f)
                .logProbabilities(true).modelLogProbabilities(true).build();
        List<Integer> whole = Engines.decode(engine, options);
        try (Session session = prompted(options.toBuilder())) {
            for (int step = 0; step < 5; step++) {
                session.step();
            }
            byte[] saved = session.save();
            try (Session restored = engine.restore(saved)) {
                assertEquals(2, restored.step().modelLogProbabilities()[0].length);
                assertEquals(whole.subList(6, 16), rest(restored, Finish.MAX_TOKENS));
            }
            assertEquals(whole.subList(5, 16), rest(session, Finish.MAX_TOKENS));
            saved[saved.length / 2] ^= 1;
            refused(ErrorCode.INVALID_ARGUMENT, "checksum", () -> engine.restore(saved));
            refused(ErrorCode.INVALID_ARGUMENT, "no saved session", () -> engine.restore(new byte[0]));
            assertThrows(NullPointerException.class, () -> engine.restore(null));
        }
        try (Session session = prompted(options().constrainer(counting(3)))) {
            refused(ErrorCode.UNSUPPORTED, "constrain", session::save);
        }
    }

    @Test
    void wrongOptionsAreNamed() {
        Map<String, SessionOptions.Builder> wrong = Map.ofEntries(
                Map.entry("min_tokens is 17, but max_tokens is 16", options().minTokens(17)),
                Map.entry("constraint_kind and constrain",
                        options().constraint(Constraint.regex("a")).constrainer(counting(1))),
                Map.entry("bias_tokens holds 4096", options().logitBias(Map.of(4096, 1f))),
                Map.entry("banned_tokens holds -1", options().bannedTokens(new int[] {1, 2}, new int[] {-1})),
                Map.entry("banned_lengths[1] is 0", options().bannedTokens(new int[] {1, 2}, new int[0])),
                Map.entry("top_log_probabilities is 21", options().logProbabilities(true).topLogProbabilities(21)),
                Map.entry("typical_p is 2", options().typicalP(2)),
                Map.entry("xtc_probability is -1", options().xtcProbability(-1)),
                Map.entry("xtc_threshold is 3", options().xtcThreshold(3)),
                Map.entry("dry_multiplier is -1", options().dryMultiplier(-1)),
                Map.entry("dry_base is 0", options().dryMultiplier(1)),
                Map.entry("dry_allowed_length is 0", options().dryMultiplier(1).dryBase(2)),
                Map.entry("dry_breakers holds 4096", options().dryBreakers(4096)),
                Map.entry("not a JSON schema", options().constraint(Constraint.jsonSchema("{"))),
                Map.entry("not a regular expression", options().constraint(Constraint.regex("a("))),
                Map.entry("not a Lark grammar", options().constraint(Constraint.lark("start: nothing"))),
                Map.entry("a string or more", options().constraint(Constraint.choices())),
                Map.entry("choice 0 is empty", options().constraint(Constraint.choices(""))));
        wrong.forEach((says, options) ->
                refused(ErrorCode.INVALID_ARGUMENT, says, () -> Engines.demo().newSession(options.build())));
        refused(ErrorCode.INVALID_ARGUMENT, "minTokens is -1", () -> options().minTokens(-1));
        refused(ErrorCode.INVALID_ARGUMENT, "surrogate", () -> Constraint.choices("a\uD83D"));
        assertThrows(NullPointerException.class, () -> options().logitBias(null));
        assertThrows(NullPointerException.class, () -> Constraint.regex(null));
    }

    @Test
    void theBestIsChosen() {
        SessionOptions options = options().temperature(1).maxTokens(6).logProbabilities(true).build();
        try (Session session = prompted(options.toBuilder())) {
            int before = NativeObject.LIVING.get();
            Best one = session.bestOf(1, 7);
            assertEquals(6, one.tokens().length);
            assertEquals(Finish.MAX_TOKENS, one.finish());
            assertTrue(one.logProbability() < 0);
            assertTrue(session.bestOf(8, 7).logProbability() > -10);
            session.setOptions(options.toBuilder().temperature(1).logProbabilities(false).build());
            refused(ErrorCode.INVALID_ARGUMENT, "logProbabilities is off", () -> session.bestOf(2, 7));
            refused(ErrorCode.INVALID_ARGUMENT, "count is 0", () -> session.bestOf(0, 7));
            assertTrue(NativeObject.LIVING.get() <= before, "the forks are freed");
            assertEquals(one, new Best(one.tokens().clone(), one.finish(), one.logProbability()));
        }
    }
}
