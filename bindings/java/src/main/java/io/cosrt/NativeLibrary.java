// Finds and loads the native libraries.

package io.cosrt;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;

/**
 * Finds and loads the native libraries: {@code libcosjni.so} in {@code java.library.path}, or else from the jar through
 * a temporary folder.
 *
 * <p>The JVM allows only one class loader to use a native library. So each class loader that has this class loads its
 * own copy of the small {@code libcosjni.so}. But {@code libcos.so} must be in the process only once, because ONNX
 * Runtime allows only one environment. The system's loader ensures this: it finds loaded libraries by their SONAME
 * ({@code libcos.so.0}), so it links every copy with the first {@code libcos.so}, which stays loaded.
 */
final class NativeLibrary {
    private static final String JNI = "libcosjni.so";
    private static final String COS = "libcos.so.0";
    private static final String ONNX_RUNTIME = "libonnxruntime.so";
    /** This property is set once libcos.so is in the process. Other class loaders then need no copy of it. */
    private static final String LOADED = "io.cosrt.loaded";

    private NativeLibrary() {}

    static void load() {
        UnsatisfiedLinkError notInPath;
        try {
            System.loadLibrary("cosjni");
            System.setProperty(LOADED, "true");
            return;
        } catch (UnsatisfiedLinkError e) {
            notInPath = e; // it is not in the path, or another class loader uses it
        }
        try {
            loadFromJar();
        } catch (IOException | UnsatisfiedLinkError e) {
            var error = new UnsatisfiedLinkError("cannot load the native libraries of CoS: " + e);
            error.initCause(e);
            error.addSuppressed(notInPath);
            throw error;
        }
    }

    /**
     * Loads the JNI library from a temporary folder of this process. It finds the other libraries in the same folder.
     *
     * <p>Files are deleted as soon as they are loaded, so that a killed process or a discarded class loader leaves
     * none. This is also safer: while its file exists, libcos.so looks for ONNX Runtime in the folders above it, and
     * anyone may have put a library into the system's temporary folder.
     */
    private static void loadFromJar() throws IOException {
        String natives = "META-INF/native/" + platform() + "/";
        Path folder = Files.createTempDirectory("cosrt-"); // other users can neither read nor write it
        Path jni = folder.resolve(JNI);
        Path cos = folder.resolve(COS);
        Path onnxRuntime = folder.resolve(ONNX_RUNTIME);
        try {
            if (!copy(natives + JNI, jni)) {
                throw new IOException("the jar has none for " + platform()
                        + "; build them and set java.library.path to their folder");
            }
            if (System.getProperty(LOADED) == null) {
                copy(natives + COS, cos);
                copyOnnxRuntime(natives, onnxRuntime);
            }
            System.load(jni.toString());
            System.setProperty(LOADED, "true");
        } finally {
            Files.deleteIfExists(jni);
            if (Files.exists(onnxRuntime)) { // the first engine loads it, so it must stay until then
                for (Path later : List.of(folder, cos, onnxRuntime)) { // deleted in reverse order
                    later.toFile().deleteOnExit();
                }
            } else {
                Files.deleteIfExists(cos);
                Files.delete(folder);
            }
        }
    }

    /** Copies ONNX Runtime to the folder of libcos.so, from this jar or from Microsoft's, unless the user names one. */
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
