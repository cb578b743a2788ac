// Tests several class loaders in one process.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.ref.WeakReference;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;

/**
 * Several class loaders in one process, as in application servers. Each has its own classes, but they share one
 * libcos.so.
 */
class ClassLoadersTest {
    /** Runs inside each class loader. */
    public static final class Probe {
        private Probe() {}

        /** Decodes with an engine of this class loader. */
        public static String run() {
            try (Engine engine = Engines.weighted()) {
                return Engines.decode(engine, SessionOptions.builder().stopTokens().maxTokens(8)
                        .combiner((logits, scores) -> scores.put(logits.get(1).duplicate())).build()).toString();
            }
        }
    }

    private static Class<?> probe() throws Exception {
        URL[] classes = {Path.of(System.getProperty("classes")).toUri().toURL(),
            Probe.class.getProtectionDomain().getCodeSource().getLocation()};
        return new URLClassLoader(classes, ClassLoader.getPlatformClassLoader()).loadClass(Probe.class.getName());
    }

    private static String run(Class<?> probe) throws Exception {
        return (String) probe.getMethod("run").invoke(null);
    }

    @Test
    void eachWorks() throws Exception {
        String expected = Probe.run();
        Class<?> one = probe();
        Class<?> two = probe();
        assertNotSame(one, two);
        ExecutorService threads = Executors.newFixedThreadPool(2);
        List<Future<String>> results = new ArrayList<>();
        for (Class<?> probe : List.of(one, two)) {
            results.add(threads.submit(() -> run(probe)));
        }
        for (Future<String> result : results) {
            assertEquals(expected, result.get());
        }
        threads.shutdown();
        assertEquals(1, mapped("libcos.so"), "copies of libcos.so in the process");
        assertTrue(mapped("libcosjni.so") >= 3, "one for each class loader");
    }

    /** A class loader that is unloaded, as in a redeployment, unloads its copy of libcosjni.so, but not libcos.so. */
    @Test
    void oneMayGo() throws Exception {
        String expected = Probe.run();
        WeakReference<Class<?>> gone = new WeakReference<>(probe());
        assertEquals(expected, run(gone.get()));
        for (int wait = 0; gone.get() != null && wait < 400; wait++) {
            System.gc();
            Thread.sleep(10);
        }
        assertNull(gone.get(), "the class loader is kept by something");
        assertEquals(1, mapped("libcos.so"));
        assertEquals(expected, run(probe()));
    }

    /** The number of files with this name that are mapped into the process. */
    private static long mapped(String name) throws IOException {
        return Files.readAllLines(Path.of("/proc/self/maps")).stream()
                .filter(line -> line.contains("/" + name))
                .map(line -> line.substring(line.indexOf('/')))
                .distinct()
                .count();
    }
}
