// Tests requests of OpenAI's protocol.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Requests, whose answers the library's own tests check. Here, nothing may be lost on the way. */
@Timeout(120)
class RequestTest {
    private static final Engine ENGINE = Engines.demo();
    /** Samples by a strategy that repeats a text. */
    private static final String REPEATS = "\"model\": \"demo\", \"seed\": 5, \"cos\": {\"strategy\": \"cos\"}, ";
    private static final String PROMPT = "\"prompt\": \"Question: How many legs do three cats have?\\nAnswer:\"";
    private static final String MESSAGES =
            "\"messages\": [{\"role\": \"user\", \"content\": \"How many legs has a cat? \u00fc\ud83d\ude00\"}]";
    private static final RequestOptions COMPLETION = options(Endpoint.COMPLETION);
    private static final RequestOptions CHAT = options(Endpoint.CHAT);

    private static RequestOptions options(Endpoint endpoint) {
        return RequestOptions.builder().endpoint(endpoint).model("demo").maxChoices(8).maxPromptTokens(500).build();
    }

    static Request completion(String members) {
        return ENGINE.newRequest("{" + REPEATS + PROMPT + ", " + members + "}", COMPLETION);
    }

    static Request chat(String members) {
        return ENGINE.newRequest("{" + REPEATS + MESSAGES + ", " + members + "}", CHAT);
    }

    private static String answer(Request request) {
        return new String(request.answer(), StandardCharsets.UTF_8);
    }

    /** Decodes to the end, and returns all that a server would have sent. */
    static String sent(Request request) {
        try (request) {
            StringBuilder text = new StringBuilder();
            RequestStatus status;
            do {
                status = request.step();
                String answer = answer(request);
                assertTrue(status.streams() || status.isOpen() == answer.isEmpty(), "a body comes at the end");
                text.append(answer);
            } while (status.isOpen());
            assertEquals(RequestState.DONE, status.state());
            return text.toString();
        }
    }

    /** The texts of the choices, from a body or from the events of a stream: the pieces of each, joined. */
    static List<String> texts(String sent, int choices) {
        String[] texts = new String[choices];
        Arrays.fill(texts, "");
        String text = "\"(?:text|content)\":\"((?:[^\"\\\\]|\\\\.)*)\"";
        Matcher matcher = Pattern.compile("\"index\":(\\d).*?" + text).matcher(sent);
        while (matcher.find()) {
            texts[Integer.parseInt(matcher.group(1))] += matcher.group(2);
        }
        return List.of(texts);
    }

    @Test
    void thePiecesOfAStreamAreTheWholeText() {
        for (String members : new String[] {"\"max_tokens\": 24", "\"max_tokens\": 12, \"n\": 3"}) {
            int choices = members.endsWith("3") ? 3 : 1;
            List<String> whole = texts(sent(completion(members)), choices);
            assertTrue(whole.stream().allMatch(text -> text.length() > 10), whole::toString);
            assertEquals(choices, whole.stream().distinct().count());
            String stream = sent(completion(members + ", \"stream\": true"));
            assertTrue(stream.startsWith("data: {") && stream.endsWith("data: [DONE]\n\n"), stream);
            assertEquals(whole, texts(stream, choices));
            assertTrue(stream.split("\n\n").length > 2 + choices, stream);

            List<String> chat = texts(sent(chat(members)), choices);
            assertEquals(choices, chat.stream().distinct().count());
            stream = sent(chat(members + ", \"stream\": true"));
            assertTrue(stream.contains("chat.completion.chunk"), stream);
            assertEquals(chat, texts(stream, choices));
        }
    }

    @Test
    void aChoiceIsTheTextOfASession() {
        int[] prompt = ENGINE.encode("Question: How many legs do three cats have?\nAnswer:", true);
        List<Integer> tokens = new ArrayList<>();
        String body = "{" + REPEATS.replace("\"cos\"}", "\"cos\", \"model_log_probabilities\": true}") + PROMPT
                + ", \"max_tokens\": 12, \"n\": 2, \"logprobs\": 2}";
        try (Request request = ENGINE.newRequest(body, COMPLETION)) {
            assertEquals(2, request.choices());
            assertEquals(new RequestStatus(RequestState.OPEN, false, prompt.length, 0), request.status());
            RequestStatus status;
            do {
                status = request.step();
                assertFalse(status.streams());
            } while (status.isOpen());
            assertEquals(new RequestStatus(RequestState.DONE, false, prompt.length, 24), status);
            assertEquals(status, request.status());
            for (int index = 0; index < 2; index++) {
                ChoiceNews news = request.choice(index);
                assertEquals(news, request.choice(index));
                assertEquals(Finish.MAX_TOKENS, news.finish());
                SessionOptions own = SessionOptions.builder().strategy(Strategy.COS).temperature(1)
                        .seed(5 + index).maxTokens(12).logProbabilities(true).topLogProbabilities(2)
                        .modelLogProbabilities(true).build();
                try (Session session = ENGINE.newSession(own)) {
                    session.prompt(prompt);
                    tokens.clear();
                    StepResult step = session.step();
                    assertEquals(step.alternatives().get(0), news.alternatives().get(0));
                    assertArrayEquals(step.modelLogProbabilities()[0], news.modelLogProbabilities()[0]);
                    assertEquals(step.logProbabilities()[0], news.logProbabilities()[0]);
                    for (; ; step = session.step()) {
                        IntStream.of(step.tokens()).forEach(tokens::add);
                        if (step.finish() != Finish.NONE) {
                            break;
                        }
                    }
                }
                assertArrayEquals(tokens.stream().mapToInt(token -> token).toArray(), news.tokens());
                assertEquals(12, news.logProbabilities().length);
                assertEquals(12, news.alternatives().size());
                assertEquals(ENGINE.decode(news.tokens()), news.text());
            }
            assertTrue(request.choice(0).toString().startsWith("ChoiceNews[text="));
            assertEquals(ErrorCode.INVALID_ARGUMENT,
                    assertThrows(CosException.class, () -> request.choice(2)).code());
            assertThrows(CosException.class, () -> request.choice(-1));
        }
    }

    @Test
    void aStreamTellsNewsOfChoices() {
        String whole = texts(sent(completion("\"max_tokens\": 20")), 1).get(0);
        String stop = whole.substring(8, 10);
        StringBuilder text = new StringBuilder();
        try (Request request = completion("\"max_tokens\": 20, \"stream\": true, \"stop\": \"" + stop + "\"")) {
            ChoiceNews none = request.choice(0);
            assertEquals(new ChoiceNews("", new int[0], null, Finish.NONE, List.of(), null, List.of()), none);
            Finish finish = Finish.NONE;
            while (request.step().isOpen()) {
                text.append(request.choice(0).text());
            }
            text.append(request.choice(0).text());
            assertEquals(Finish.STOP_STRING, request.choice(0).finish());
        }
        assertEquals(whole.substring(0, whole.indexOf(stop)), text.toString());
    }

    private static void refused(int status, ErrorCode code, String type, String json, String body) {
        CosException error = assertThrows(CosException.class, () -> ENGINE.newRequest(body, COMPLETION).close());
        assertEquals(code, error.code(), error.getMessage());
        assertEquals(status, error.httpStatus());
        assertTrue(error.json().matches("(?s)\\{ ?\"error\": ?\\{.*\\}\\}"), error.json());
        assertTrue(error.json().contains(type) && error.json().contains(json), error.json());
    }

    @Test
    void errorsHaveAStatusAndAnAnswer() {
        String bad = "invalid_request_error";
        refused(400, ErrorCode.INVALID_ARGUMENT, bad, "EOF", "{");
        refused(400, ErrorCode.INVALID_ARGUMENT, bad, "prompt", "{\"model\": \"demo\"}");
        refused(400, ErrorCode.INVALID_ARGUMENT, bad, "temperature", "{" + REPEATS + PROMPT + ", \"temperature\": -1}");
        refused(400, ErrorCode.INVALID_ARGUMENT, bad, "choices", "{" + REPEATS + PROMPT + ", \"n\": 9}");
        refused(404, ErrorCode.NOT_FOUND, bad, "model_not_found", "{\"model\": \"other\", " + PROMPT + "}");
        String words = "\"prompt\": \"" + "word ".repeat(600) + "\"";
        refused(400, ErrorCode.CONTEXT_FULL, bad, "context_length_exceeded", "{" + REPEATS + words + "}");
        refused(400, ErrorCode.INVALID_ARGUMENT, bad, "surrogate", "\ud83d");

        // Errors that are not of requests, and those of the binding itself.
        CosException error = assertThrows(CosException.class, () -> Engine.fromJson("{}"));
        assertEquals(500, error.httpStatus());
        assertTrue(error.json().contains("server_error"), error.json());
        error = assertThrows(CosException.class, () -> RequestOptions.builder().maxChoices(-1));
        assertEquals(400, error.httpStatus());
        error = new CosException(ErrorCode.BUSY, "a \"quote\" and a \\");
        assertEquals(500, error.httpStatus());
        assertEquals("{\"error\": {\"message\": \"a \\\"quote\\\" and a \\\\\", \"type\": \"server_error\", "
                + "\"param\": null, \"code\": null}}", error.json());
    }

    @Test
    void nullsAndNumbersOutOfRange() {
        RequestOptions any = RequestOptions.builder().maxTokens((1L << 32) - 1).build();
        ENGINE.newRequest("{" + PROMPT + "}", any).close();
        assertThrows(NullPointerException.class, () -> ENGINE.newRequest((byte[]) null, any));
        assertThrows(NullPointerException.class, () -> ENGINE.newRequest((String) null, any));
        assertThrows(NullPointerException.class, () -> ENGINE.newRequest("{" + PROMPT + "}", null));
        assertThrows(NullPointerException.class, () -> RequestOptions.builder().endpoint(null));
        assertThrows(NullPointerException.class, () -> Request.stepMany(null));
        for (long number : new long[] {-1, 1L << 32}) {
            assertThrows(CosException.class, () -> RequestOptions.builder().maxChoices(number));
            assertThrows(CosException.class, () -> RequestOptions.builder().maxPromptTokens(number));
            assertThrows(CosException.class, () -> RequestOptions.builder().maxTokens(number));
        }
        assertThrows(CosException.class, () -> RequestOptions.builder().model("a\0b"));
        RequestOptions short_ = RequestOptions.builder().model("demo").maxTokens(3).build();
        String tooLong = "{" + REPEATS + PROMPT + ", \"max_tokens\": 4}";
        assertEquals(400, assertThrows(CosException.class, () -> ENGINE.newRequest(tooLong, short_)).httpStatus());
    }

    /** Another thread cancels or closes a request at any point, and a third one is told that it is busy. */
    @Test
    void otherThreadsEndRequests() throws Exception {
        ExecutorService threads = Executors.newCachedThreadPool();
        for (int round = 0; round < 20; round++) {
            boolean closes = round % 2 == 1;
            try (Request request = completion("\"max_tokens\": 1500, \"ignore_eos\": true, \"n\": 2")) {
                CountDownLatch stepping = new CountDownLatch(1);
                Future<RequestState> steps = threads.submit(() -> {
                    RequestStatus status;
                    try {
                        do {
                            stepping.countDown();
                            status = request.step();
                        } while (status.isOpen());
                    } catch (IllegalStateException closed) {
                        return RequestState.CANCELLED;
                    }
                    return status.state();
                });
                stepping.await();
                Thread.sleep(round);
                try {
                    request.answer(); // between two steps
                } catch (CosException error) {
                    assertEquals(ErrorCode.BUSY, error.code());
                }
                assertEquals(2, request.choices());
                Runnable end = closes ? request::close : request::cancel;
                end.run();
                assertEquals(RequestState.CANCELLED, steps.get());
                if (!closes) {
                    assertEquals(RequestState.CANCELLED, request.step().state());
                    assertEquals(0, request.answer().length);
                }
            }
        }
        threads.shutdown();
    }

    /** One thread drives requests that end at different times. A bad one hurts no other. */
    @Test
    void oneThreadDrivesMany() {
        List<Request> requests = new ArrayList<>();
        List<List<String>> alone = new ArrayList<>();
        String[] sent = new String[4];
        Arrays.fill(sent, "");
        for (int index = 0; index < sent.length; index++) {
            String members = "\"n\": 2, \"max_tokens\": " + (4 + 4 * index) + ", \"stream\": " + (index % 2 == 1);
            alone.add(texts(sent(index < 2 ? completion(members) : chat(members)), 2));
            requests.add(index < 2 ? completion(members) : chat(members));
        }
        Request closed = completion("\"n\": 1");
        closed.close();
        List<Request> given = new ArrayList<>(Arrays.asList(null, closed, requests.get(0)));
        given.addAll(requests);
        boolean[] done = new boolean[sent.length];
        for (int open = sent.length; open > 0; ) {
            List<RequestNews> news = Request.stepMany(given);
            assertEquals(given.size(), news.size());
            assertTrue(news.get(0).error().getMessage().contains("requests[0] is null"));
            assertTrue(news.get(1).error() instanceof IllegalStateException);
            assertTrue(news.get(3).error().getMessage().contains("requests[3] is the same as requests[2]"));
            for (int index = 0; index < sent.length; index++) {
                RequestNews one = news.get(index == 0 ? 2 : 3 + index);
                assertNull(one.error());
                if (!done[index]) {
                    sent[index] += answer(requests.get(index));
                    done[index] = !one.status().isOpen();
                    open -= done[index] ? 1 : 0;
                }
            }
        }
        for (int index = 0; index < sent.length; index++) {
            assertEquals(alone.get(index), texts(sent[index], 2));
            requests.get(index).close();
        }
        assertEquals(List.of(), Request.stepMany(List.of()));
    }

    @Test
    void unreachableRequestsAreFreed() throws Exception {
        int before = NativeObject.LIVING.get();
        for (int i = 0; i < 20; i++) {
            completion("\"max_tokens\": 4").step();
        }
        for (int wait = 0; NativeObject.LIVING.get() > before && wait < 400; wait++) {
            System.gc();
            Thread.sleep(10);
        }
        assertTrue(NativeObject.LIVING.get() <= before);
    }
}
