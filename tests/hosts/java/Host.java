import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import io.cosrt.*;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * A program that uses both CoS and ONNX Runtime, the latter through Microsoft's jar, in either order.
 *
 * <p>java Host FIRST CONFIG MODEL, where FIRST is "cos" or "onnxruntime".
 */
public class Host {
    public static void main(String[] arguments) throws Exception {
        OrtEnvironment environment = arguments[0].equals("onnxruntime") ? OrtEnvironment.getEnvironment() : null;
        try (Engine engine = Engine.open(Path.of(arguments[1]))) {
            List<Integer> before = decode(engine);
            if (environment == null) environment = OrtEnvironment.getEnvironment();
            try (OrtSession session = environment.createSession(arguments[2])) {
                if (session.getInputNames().isEmpty()) throw new AssertionError("Microsoft's jar sees no inputs");
            }
            List<Integer> after = decode(engine);
            if (!after.equals(before)) throw new AssertionError("the text has become " + after);
            String about = engine.describe();
            String pool = about.replaceAll("(?s).*\"thread_pool\": ?\"(\\w+)\".*", "$1");
            System.out.println(before + " " + pool);
        }
    }

    private static List<Integer> decode(Engine engine) {
        var tokens = new ArrayList<Integer>();
        try (Session session = engine.newSession(SessionOptions.builder().maxTokens(8).build())) {
            session.prompt(new int[] {5, 6, 7, 8});
            StepResult step;
            do {
                step = session.step();
                for (int token : step.tokens()) tokens.add(token);
            } while (step.finish() == Finish.NONE);
        }
        return tokens;
    }
}
