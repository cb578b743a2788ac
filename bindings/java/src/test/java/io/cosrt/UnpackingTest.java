// Tests how the native libraries come out of the jar.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The native libraries are unpacked to a temporary folder. No files stay there, and no other files there are used. */
class UnpackingTest {
    @TempDir
    Path temporary;
    @TempDir
    Path resources;

    /** Runs in a process of its own. */
    public static final class Probe {
        private Probe() {}

        /** Prints which ONNX Runtime was loaded, or the code of the error. With an argument, ends without clean-up. */
        public static void main(String[] arguments) {
            try (Engine engine = Engines.weighted()) {
                System.out.println(engine.describe().replaceAll("(?s).*\"onnxruntime\": ?\"([^\"]*)\".*", "$1"));
            } catch (CosException e) {
                System.out.println(e.code());
            }
            if (arguments.length > 0) {
                Runtime.getRuntime().halt(0);
            }
        }
    }

    private String run(boolean named, String... arguments) throws Exception {
        Path tests = Path.of(Probe.class.getProtectionDomain().getCodeSource().getLocation().toURI());
        String classPath = System.getProperty("classes") + File.pathSeparator + tests + File.pathSeparator + resources;
        String java = Path.of(System.getProperty("java.home"), "bin", "java").toString();
        List<String> command = new ArrayList<>(List.of(java, "-Djava.io.tmpdir=" + temporary, "-cp", classPath,
                Probe.class.getName()));
        command.addAll(List.of(arguments));
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
        if (!named) {
            builder.environment().remove("ORT_DYLIB_PATH");
        }
        Process process = builder.start();
        String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertEquals(0, process.waitFor(), text);
        return text;
    }

    private List<Path> left() throws IOException {
        try (Stream<Path> files = Files.list(temporary)) {
            return files.filter(file -> file.getFileName().toString().startsWith("cosrt-")).toList();
        }
    }

    /** The file of ONNX Runtime that the tests run with. */
    private static Path onnxRuntime() throws IOException {
        Path named = Path.of(System.getenv("ORT_DYLIB_PATH"));
        if (!Files.isDirectory(named)) {
            return named.toRealPath();
        }
        try (Stream<Path> files = Files.list(named)) {
            String prefix = "libonnxruntime.so";
            return files.filter(path -> path.getFileName().toString().startsWith(prefix)).findAny().get().toRealPath();
        }
    }

    @Test
    void aKilledProcessLeavesNoFiles() throws Exception {
        assertTrue(run(true, "halt").contains("libonnxruntime"));
        assertEquals(List.of(), left());
    }

    /** With the layout of Microsoft's jar. */
    @Test
    void onnxRuntimeComesFromTheClassPath() throws Exception {
        String architecture = System.getProperty("os.arch").equals("amd64") ? "x64" : "aarch64";
        Path folder = Files.createDirectories(resources.resolve("ai/onnxruntime/native/linux-" + architecture));
        Files.createSymbolicLink(folder.resolve("libonnxruntime.so"), onnxRuntime());
        String loaded = run(false);
        assertTrue(loaded.startsWith(temporary.toRealPath().toString()), loaded);
        assertEquals(List.of(), left());
    }

    /** Anyone may have put a library into the system's temporary folder. */
    @Test
    void librariesInTheTemporaryFolderAreNotUsed() throws Exception {
        Files.createSymbolicLink(temporary.resolve("libonnxruntime.so"), onnxRuntime());
        String loaded = run(false);
        assertFalse(loaded.contains(onnxRuntime().toString()) || loaded.contains(temporary.toString()), loaded);
    }
}
