// Chats with the demo models.
import io.cosrt.*;
import java.nio.file.Path;

public class Chat {
    public static void main(String[] arguments) {
        var options = SessionOptions.builder().temperature(1).seed(42).maxTokens(100).build();
        try (Engine engine = Engine.open(Path.of("models/demo/engine.json")); // two models, mixed half and half
                Session session = engine.newSession(options);
                TextStream text = engine.newTextStream()) {
            session.prompt(engine.encode("Question: How many legs do three cats have?\nAnswer:", true));
            StepResult step;
            do {
                step = session.step(); // at least one token, often several
                System.out.print(text.push(step.tokens()));
            } while (step.finish() == Finish.NONE);
            System.out.println(text.finish());
        }
    }
}
