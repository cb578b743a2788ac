package io.cosrt;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;

/**
 * Finds and loads the natives: {@code libcosjni.so} in {@code java.library.path}, or else from the jar through a temporary
 * folder.
 *
 * <p>The JVM lends a native library to one class loader only, so each class loader that has this class loads a copy of the
 * small {@code libcosjni.so} for itself. {@code libcos.so} however must be in the process once, for ONNX Runtime allows
 * one environment only. The system's loader sees to that: it knows what is loaded by SONAME ({@code libcos.so.0}), and links
 * every copy with the first one, which stays for good.
 */
final class NativeLibrary {
    private static final String JNI = "libcosjni.so";
    private static final String COS = "libcos.so.0";
    private static final String ONNX_RUNTIME = "libonnxruntime.so";
    /** Set once libcos.so is in the process: other class loaders need no copy then. */
    private static final String LOADED = "io.cosrt.loaded";

    private NativeLibrary() {}

    static void load() {
        UnsatisfiedLinkError notInPath;
        try {
            System.loadLibrary("cosjni");
            System.setProperty(LOADED, "true");
            return;
        } catch (UnsatisfiedLinkError e) {
            notInPath = e; // it is not there, or another class loader has it
        }
        try {
            loadFromJar();
        } catch (IOException | UnsatisfiedLinkError e) {
            var error = new UnsatisfiedLinkError("cannot load CoS's natives: " + e);
            error.initCause(e);
            error.addSuppressed(notInPath);
            throw error;
        }
    }

    /**
     * Loads the JNI library from a folder of this process, where it finds what it needs beside itself.
     *
     * <p>Files are deleted as soon as they are loaded, so that nothing is left by a process that is killed, nor by class
     * loaders that come and go. It is for safety, too: libcos.so looks for ONNX Runtime in the folders above its own file,
     * while that exists, and everyone may have left a library in the system's temporary folder.
     */
    private static void loadFromJar() throws IOException {
        String natives = "META-INF/native/" + platform() + "/";
        Path folder = Files.createTempDirectory("cosrt-"); // which other users can neither read nor write
        Path jni = folder.resolve(JNI);
        Path cos = folder.resolve(COS);
        Path onnxRuntime = folder.resolve(ONNX_RUNTIME);
        try {
            if (!copy(natives + JNI, jni)) {
                throw new IOException("the jar has none for " + platform() + "; build them and set java.library.path");
            }
            if (System.getProperty(LOADED) == null) {
                copy(natives + COS, cos);
                copyOnnxRuntime(natives, onnxRuntime);
            }
            System.load(jni.toString());
            System.setProperty(LOADED, "true");
        } finally {
            Files.deleteIfExists(jni);
            if (Files.exists(onnxRuntime)) { // it is loaded with the first engine
                for (Path later : List.of(folder, cos, onnxRuntime)) { // in reverse
                    later.toFile().deleteOnExit();
                }
            } else {
                Files.deleteIfExists(cos);
                Files.delete(folder);
            }
        }
    }

    /** What libcos.so finds beside itself: packed with this jar, or Microsoft's own jar. */
    private static void copyOnnxRuntime(String natives, Path file) throws IOException {
        String named = System.getenv("ORT_DYLIB_PATH");
        if (named == null || named.isEmpty()) {
            String architecture = platform().endsWith("x86_64") ? "x64" : "aarch64";
            if (!copy(natives + ONNX_RUNTIME, file)) {
                copy("ai/onnxruntime/native/linux-" + architecture + "/" + ONNX_RUNTIME, file);
            }
        }
    }

    private static String platform() {
        String system = System.getProperty("os.name").toLowerCase(Locale.ROOT);
        String architecture = System.getProperty("os.arch");
        return system + "-" + (architecture.equals("amd64") ? "x86_64" : architecture);
    }

    private static boolean copy(String resource, Path file) throws IOException {
        ClassLoader loader = NativeLibrary.class.getClassLoader();
        try (InputStream in = loader == null ? ClassLoader.getSystemResourceAsStream(resource)
                : loader.getResourceAsStream(resource)) {
            if (in == null) {
                return false;
            }
            Files.copy(in, file);
            return true;
        }
    }
}
