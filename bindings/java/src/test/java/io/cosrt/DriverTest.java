// Tests the thread that decodes requests.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.function.Executable;

/** A driver, whose requests must say what they say without one. */
@Timeout(120)
class DriverTest {
    private static final String LONG = "\"max_tokens\": 400, \"ignore_eos\": true, \"stream\": true";
    private static final String OTHER = "\"max_tokens\": 90, \"ignore_eos\": true, \"stream\": true";
    /** Soon has more text than a driver keeps. */
    private static final String WORDY = "\"n\": 8, \"max_tokens\": 60, \"ignore_eos\": true, \"stream\": true, "
            + "\"logprobs\": true, \"top_logprobs\": 20";

    private static void waitUntilFull(DrivenRequest driven) throws InterruptedException {
        while (driven.isReady()) {
            assertFalse(driven.isEnded(), "it has too little text");
            Thread.sleep(1);
        }
    }

    /** Takes all pieces. */
    private static String sent(DrivenRequest driven) throws InterruptedException {
        StringBuilder text = new StringBuilder();
        Piece piece;
        do {
            piece = driven.next();
            String added = new String(piece.text(), StandardCharsets.UTF_8);
            boolean isWhole = piece.status().streams() || piece.status().isOpen() == added.isEmpty();
            assertTrue(isWhole, "a body comes at the end");
            text.append(added);
        } while (piece.status().isOpen());
        assertEquals(RequestState.DONE, piece.status().state());
        assertEquals(new Piece(piece.status(), new byte[0]), driven.next(), "after the end");
        return text.toString();
    }

    private static RequestState end(DrivenRequest driven) throws InterruptedException {
        RequestStatus status;
        do {
            status = driven.next().status();
        } while (status.isOpen());
        return status.state();
    }

    private static void assertClosed(Request request) {
        assertThrows(IllegalStateException.class, request::choices);
    }

    @Test
    void theTextIsThatOfStep() throws Exception {
        try (Driver driver = new Driver()) {
            for (String members : new String[] {"\"max_tokens\": 24", "\"max_tokens\": 12, \"n\": 3"}) {
                int choices = members.endsWith("3") ? 3 : 1;
                for (String stream : new String[] {"", ", \"stream\": true"}) {
                    List<String> alone = RequestTest.texts(RequestTest.sent(RequestTest.completion(members)), choices);
                    Request request = RequestTest.completion(members + stream);
                    String sent = sent(driver.start(request));
                    assertEquals(!stream.isEmpty(), sent.endsWith("data: [DONE]\n\n"), sent);
                    assertEquals(alone, RequestTest.texts(sent, choices));
                    assertClosed(request);
                }
            }
        }
    }

    @Test
    void manyAtOnce() throws Exception {
        int count = 12;
        ExecutorService threads = Executors.newFixedThreadPool(count);
        try (Driver driver = new Driver()) {
            List<List<String>> alone = new ArrayList<>();
            List<Future<List<String>>> together = new ArrayList<>();
            for (int index = 0; index < count; index++) {
                String members = "\"n\": 2, \"max_tokens\": " + (4 + index) + ", \"stream\": " + (index % 2 == 1);
                boolean isChat = index % 3 == 0;
                alone.add(RequestTest.texts(RequestTest.sent(
                        isChat ? RequestTest.chat(members) : RequestTest.completion(members)), 2));
                together.add(threads.submit(() -> RequestTest.texts(sent(driver.start(
                        isChat ? RequestTest.chat(members) : RequestTest.completion(members))), 2)));
            }
            for (int index = 0; index < count; index++) {
                assertEquals(alone.get(index), together.get(index).get());
            }
        }
        threads.shutdown();
    }

    /** A piece has the text of all steps since the last one, and nothing is lost if nobody takes it. */
    @Test
    void piecesWaitForThoseWhoTakeThem() throws Exception {
        String members = "\"max_tokens\": 24, \"stream\": true";
        String alone = RequestTest.sent(RequestTest.completion(members));
        try (Driver driver = new Driver()) {
            Request request = RequestTest.completion(members);
            DrivenRequest driven = driver.start(request);
            while (!driven.isEnded()) {
                Thread.sleep(1);
            }
            Piece piece = driven.next();
            assertFalse(piece.status().isOpen());
            String text = new String(piece.text(), StandardCharsets.UTF_8);
            assertEquals(RequestTest.texts(alone, 1), RequestTest.texts(text, 1));
        }
    }

    @Test
    void cancelledRequestsEnd() throws Exception {
        String members = "\"max_tokens\": 24, \"n\": 2, \"stream\": true";
        List<String> alone = RequestTest.texts(RequestTest.sent(RequestTest.completion(members)), 2);
        try (Driver driver = new Driver()) {
            for (int round = 0; round < 6; round++) {
                DrivenRequest other = driver.start(RequestTest.completion(members));
                Request request = RequestTest.completion(LONG);
                DrivenRequest driven = driver.start(request);
                if (round % 2 == 1) {
                    driven.next();
                }
                Thread.sleep(2L * round);
                driven.cancel();
                assertEquals(RequestState.CANCELLED, end(driven));
                assertClosed(request);
                driven.cancel();
                assertEquals(RequestState.CANCELLED, end(driven));
                assertEquals(alone, RequestTest.texts(sent(other), 2));
            }
        }
    }

    /** Requests that find no memory have an error of their own. The others go on. */
    @Test
    void anErrorEndsOneRequest() throws Exception {
        String model = "{\"path\": \"models/demo/%s\", \"context_length\": 512, \"cache_bytes\": 4194304}";
        String config = "{\"models\": [" + model.formatted("base") + ", " + model.formatted("math") + "], "
                + "\"combine\": {\"kind\": \"weighted\", \"weights\": [0.5, 0.5]}, \"when_full\": \"refuse\"}";
        RequestOptions options = RequestOptions.builder().build();
        try (Engine engine = Engine.fromJson(config); Driver driver = new Driver()) {
            List<Request> requests = IntStream.range(0, 12).mapToObj(index -> engine.newRequest(
                    "{\"prompt\": " + IntStream.generate(() -> 300 + index).limit(300).boxed().toList()
                    + ", \"max_tokens\": 24, \"stream\": " + (index % 2 == 1) + "}", options)).toList();
            List<DrivenRequest> all = requests.stream().map(driver::start).toList();
            int done = 0;
            for (DrivenRequest driven : all) {
                try {
                    sent(driven);
                    done++;
                } catch (CosException error) {
                    assertEquals(503, error.httpStatus());
                    assertSame(error, assertThrows(CosException.class, driven::next));
                }
            }
            assertTrue(0 < done && done < all.size(), done + " are done");
            requests.forEach(DriverTest::assertClosed);
        }
    }

    @Test
    void closingCancelsWhatIsLeft() throws Exception {
        Driver driver = new Driver();
        List<Request> requests = IntStream.range(0, 4).mapToObj(index -> RequestTest.completion(LONG)).toList();
        List<DrivenRequest> all = requests.stream().map(driver::start).toList();
        all.get(0).next();
        Thread.currentThread().interrupt();
        driver.close();
        assertTrue(Thread.interrupted());
        requests.forEach(DriverTest::assertClosed);
        for (DrivenRequest driven : all) {
            assertEquals(RequestState.CANCELLED, end(driven));
        }
        driver.close();
        try (Request late = RequestTest.completion("\"max_tokens\": 2")) {
            assertThrows(IllegalStateException.class, () -> driver.start(late));
            assertTrue(late.step().streams() || late.choices() == 1, "it stays the caller's");
        }
    }

    /** Those who wait when a driver is closed learn of the end of their requests. Its threads end. */
    @Test
    void closingWakesThoseWhoWait() throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(8);
        for (int round = 0; round < 10; round++) {
            List<Future<RequestState>> ends = new ArrayList<>();
            try (Driver driver = new Driver()) {
                for (int i = 0; i < 8; i++) {
                    DrivenRequest driven = driver.start(RequestTest.completion(LONG));
                    ends.add(threads.submit(() -> end(driven)));
                }
                Thread.sleep(5L * round);
            }
            for (Future<RequestState> end : ends) {
                assertEquals(RequestState.CANCELLED, end.get(20, TimeUnit.SECONDS));
            }
        }
        threads.shutdown();
        for (Thread thread : Thread.getAllStackTraces().keySet()) {
            assertFalse(thread.getName().startsWith("cosrt-"), thread.getName());
        }
    }

    @Test
    void requestsThatCannotBegin() {
        try (Driver driver = new Driver()) {
            assertThrows(NullPointerException.class, () -> driver.start(null));
            Request closed = RequestTest.completion("\"n\": 1");
            closed.close();
            assertThrows(IllegalStateException.class, () -> driver.start(closed));
        }
    }

    /** One that waits for a piece may be interrupted, and its request goes on. A request may also be closed. */
    @Test
    void waitingMayEndBefore() throws Exception {
        try (Driver driver = new Driver()) {
            Request request = RequestTest.completion("\"max_tokens\": 24");
            DrivenRequest driven = driver.start(request);
            Thread.currentThread().interrupt();
            assertThrows(InterruptedException.class, driven::next);
            assertEquals(1, RequestTest.texts(sent(driven), 1).size());

            request = RequestTest.completion(LONG);
            driven = driver.start(request);
            request.close();
            assertEquals(RequestState.CANCELLED, end(driven));
        }
    }

    /** Text that nobody takes costs no more memory: its request waits, and the others go on. */
    @Test
    void textThatNobodyTakesIsBounded() throws Exception {
        List<String> alone = RequestTest.texts(RequestTest.sent(RequestTest.chat(WORDY)), 8);
        String other = RequestTest.sent(RequestTest.completion(OTHER));
        try (Driver driver = new Driver()) {
            DrivenRequest driven = driver.start(RequestTest.chat(WORDY));
            waitUntilFull(driven);
            assertEquals(RequestTest.texts(other, 1),
                    RequestTest.texts(sent(driver.start(RequestTest.completion(OTHER))), 1));
            Piece piece = driven.next();
            int bytes = piece.text().length;
            assertTrue(piece.status().isOpen() && bytes < 2 * Driver.UNSENT_BYTES, bytes + " bytes, " + piece.status());
            // Alone now, so that the driver's thread sleeps each time that the request is full.
            StringBuilder text = new StringBuilder(new String(piece.text(), StandardCharsets.UTF_8));
            while (!driven.isEnded()) {
                if (!driven.isReady()) {
                    text.append(new String(driven.next().text(), StandardCharsets.UTF_8));
                }
                Thread.sleep(1);
            }
            assertEquals(alone, RequestTest.texts(text.append(sent(driven)).toString(), 8));
        }
    }

    @Test
    void requestsWhoseTextNobodyTakesCanBeCancelled() throws Exception {
        Driver driver = new Driver();
        List<Request> requests = IntStream.range(0, 4).mapToObj(index -> RequestTest.chat(WORDY)).toList();
        List<DrivenRequest> all = requests.stream().map(driver::start).toList();
        for (DrivenRequest driven : all) {
            waitUntilFull(driven);
        }
        all.get(0).cancel();
        requests.get(1).cancel();
        requests.get(2).close();
        for (DrivenRequest driven : all.subList(0, 3)) {
            assertEquals(RequestState.CANCELLED, end(driven));
        }
        assertFalse(all.get(3).isEnded());
        driver.close();
        assertEquals(RequestState.CANCELLED, end(all.get(3)));
        requests.forEach(DriverTest::assertClosed);
    }

    private static void assertBusy(Executable call) {
        assertEquals(ErrorCode.BUSY, assertThrows(CosException.class, call).code());
    }

    /** Nobody hurts a request that is driven by using it too. */
    @Test
    void drivenRequestsAreInUse() throws Exception {
        List<String> alone = RequestTest.texts(RequestTest.sent(RequestTest.completion(OTHER)), 1);
        try (Driver driver = new Driver(); Driver second = new Driver()) {
            Request request = RequestTest.completion(OTHER);
            DrivenRequest driven = driver.start(request);
            for (int round = 0; round < 20; round++) {
                assertBusy(() -> driver.start(request));
                assertBusy(() -> second.start(request));
                assertBusy(request::status);
                assertBusy(request::answer);
                assertBusy(request::step);
                assertEquals(1, request.choices());
            }
            assertEquals(alone, RequestTest.texts(sent(driven), 1));
        }
    }

    @Test
    void requestsThatHaveEndedAreClosed() throws Exception {
        try (Driver driver = new Driver()) {
            Request request = RequestTest.completion("\"max_tokens\": 2");
            RequestStatus status = request.step();
            assertFalse(status.isOpen());
            DrivenRequest driven = driver.start(request);
            assertClosed(request);
            assertEquals(new Piece(status, new byte[0]), driven.next());
        }
    }

    /** Such as no memory for its answer. The text before it is not lost, and others go on. */
    @Test
    void aJavaErrorEndsOneRequest() throws Exception {
        List<String> alone = RequestTest.texts(RequestTest.sent(RequestTest.completion(OTHER)), 1);
        try (Driver driver = new Driver()) {
            Request request = RequestTest.chat(WORDY);
            DrivenRequest driven = driver.start(request);
            DrivenRequest other = driver.start(RequestTest.completion(OTHER));
            waitUntilFull(driven); // so that the driver's thread leaves it to this one
            Error error = new OutOfMemoryError("a test");
            driven.tell(error);
            assertTrue(driven.next().text().length > Driver.UNSENT_BYTES);
            assertSame(error, assertThrows(IllegalStateException.class, driven::next).getCause());
            assertClosed(request);
            assertEquals(alone, RequestTest.texts(sent(other), 1));
        }
    }
}
