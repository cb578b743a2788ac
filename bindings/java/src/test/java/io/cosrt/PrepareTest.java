// Tests of the preparation of an engine.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Engines that are prepared. */
class PrepareTest {
    private static Engine engine;

    @BeforeAll
    static void open() {
        engine = Engines.weighted();
    }

    @AfterAll
    static void close() {
        engine.close();
    }

    private static PrepareOptions.Builder options() {
        return PrepareOptions.builder().sessions(2).tokens(64).time(Duration.ofMinutes(1));
    }

    @Test
    void tellsHowFarItHasCome() {
        List<Double> shares = new ArrayList<>();
        assertEquals(1, engine.prepare(options().progress(shares::add).build()));
        assertTrue(shares.size() > 20, shares.toString());
        assertEquals(shares.stream().sorted().toList(), shares);
        assertEquals(0, shares.get(0));
        assertEquals(1, shares.get(shares.size() - 1));
        assertEquals(0, engine.stats().tokens());
        assertEquals(1, engine.prepare());
    }

    @Test
    void endsByTheFunctionAndByTheTime() {
        List<Double> shares = new ArrayList<>();
        double share = engine.prepare(options().progress(done -> shares.add(done) && shares.size() < 10).build());
        assertTrue(share < 1 && shares.size() == 10 && shares.get(9) == share, shares.toString());
        assertTrue(engine.prepare(options().time(Duration.ofNanos(1)).build()) < 1);
    }

    @Test
    void whatTheFunctionThrowsIsTheCause() {
        RuntimeException mine = new RuntimeException("mine");
        PrepareOptions throwing = options().progress(share -> {
            throw mine;
        }).build();
        CosException error = assertThrows(CosException.class, () -> engine.prepare(throwing));
        assertEquals(ErrorCode.CALLBACK, error.code());
        assertSame(mine, error.getCause());
    }

    @Test
    void wrongOptionsAreNamed() {
        for (PrepareOptions wrong : List.of(options().sessions(1025).build(), options().sessions(-1).build(),
                options().time(Duration.ofSeconds(-1)).build(), options().time(Duration.ofDays(2)).build())) {
            CosException error = assertThrows(CosException.class, () -> engine.prepare(wrong));
            assertEquals(ErrorCode.INVALID_ARGUMENT, error.code());
            assertTrue(error.getMessage().matches(".*(sessions|seconds) is .*"), error.getMessage());
        }
        assertThrows(NullPointerException.class, () -> options().time(null));
        assertThrows(NullPointerException.class, () -> options().progress(null));
    }

    /** Closing an engine ends the preparation that another thread makes, and waits for it. */
    @Test
    void endsWhenTheEngineIsClosed() throws Exception {
        Engine own = Engines.weighted();
        CountDownLatch begun = new CountDownLatch(1);
        double[] share = {1};
        Thread preparing = new Thread(() -> share[0] = own.prepare(options().sessions(64).progress(done -> {
            assertThrows(IllegalStateException.class, own::close); // it would wait for itself
            begun.countDown();
            while (!isClosed(own)) {
                Thread.onSpinWait();
            }
            return true;
        }).build()));
        preparing.start();
        begun.await();
        own.close();
        preparing.join();
        assertEquals(0, share[0]);
        assertThrows(IllegalStateException.class, own::prepare);
    }

    private static boolean isClosed(Engine engine) {
        try {
            engine.vocabSize();
            return false;
        } catch (IllegalStateException closed) {
            return true;
        }
    }
}
