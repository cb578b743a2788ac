package io.cosrt;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
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
            System.setProperty(LOADED, "java.library.path");
            return;
        } catch (UnsatisfiedLinkError e) {
            notInPath = e; // it is not there, or another class loader has it
        }
        try {
            System.load(unpack().toString());
        } catch (IOException | UnsatisfiedLinkError e) {
            var error = new UnsatisfiedLinkError("cannot load CoS's natives: " + e);
            error.initCause(e);
            error.addSuppressed(notInPath);
            throw error;
        }
    }

    /** The JNI library, copied out of the jar to a folder that goes with the process, beside what it needs. */
    private static Path unpack() throws IOException {
        String natives = "META-INF/native/" + platform() + "/";
        Path folder = Files.createTempDirectory("cosrt-");
        folder.toFile().deleteOnExit(); // first registered, deleted last
        if (!copy(natives + JNI, folder.resolve(JNI))) {
            throw new IOException("the jar has none for " + platform() + "; build them and set java.library.path");
        }
        if (System.getProperty(LOADED) == null) {
            copy(natives + COS, folder.resolve(COS));
            // libcos.so looks for ONNX Runtime beside itself: packed with this jar, or Microsoft's own jar.
            if (System.getenv("ORT_DYLIB_PATH") == null && !copy(natives + ONNX_RUNTIME, folder.resolve(ONNX_RUNTIME))) {
                copy("ai/onnxruntime/native/linux-" + (platform().endsWith("x86_64") ? "x64" : "aarch64") + "/" + ONNX_RUNTIME,
                        folder.resolve(ONNX_RUNTIME));
            }
            System.setProperty(LOADED, folder.toString());
        }
        return folder.resolve(JNI);
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
            file.toFile().deleteOnExit();
            Files.copy(in, file);
            return true;
        }
    }
}
